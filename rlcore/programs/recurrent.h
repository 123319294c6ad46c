/* The loops of recurrent layers over the rows of a sequence, forward and back (see recurrent.py and
 * rlcore/networks/recurrent.py, whose loops these are). GNU C; all arrays are dense, row by row. */

#define RL_ALONE __attribute__((optimize("O3", "tree-loop-vectorize", "fp-contract=fast", "no-math-errno", "no-trapping-math")))

RL_ALONE static inline __attribute__((always_inline)) float rl_exp(float x) { /* Cephes' polynomial, 2 units of 2^-24 */
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f; /* to the nearest whole number */
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f, p = 1.9875691500e-4f, scale;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int bits = ((int)n + 127) << 23;
  memcpy(&scale, &bits, 4);
  return p * scale;
}

RL_ALONE static inline __attribute__((always_inline)) float rl_sigmoid(float x) { return 1.0f / (1.0f + rl_exp(-x)); }
RL_ALONE static inline __attribute__((always_inline)) float rl_tanh(float x) { return 2.0f * rl_sigmoid(2.0f * x) - 1.0f; }

#define RL_APART _Pragma("GCC ivdep") /* no two arrays of a loop share memory */

/* m [K, N], or m [N, K] where it is to be turned, as panels of RL_PANEL columns, filled up with 0. */
enum { RL_PANEL = RL_VECTORS * RL_WIDTH };
RL_ALONE static float *rl_panels(long K, long N, const float *m, int turned) {
  float *panels = (float *)calloc(K * (N + RL_PANEL), sizeof(float)), *panel = panels;
  for (long n = 0; n < N; n += RL_PANEL, panel += K * RL_PANEL) {
    const long width = N - n < RL_PANEL ? N - n : RL_PANEL;
    if (turned)
      for (long j = 0; j < width; j++)
        for (long k = 0; k < K; k++) panel[k * RL_PANEL + j] = m[(n + j) * K + k];
    else
      for (long k = 0; k < K; k++) memcpy(panel + k * RL_PANEL, m + k * N + n, sizeof(float) * width);
  }
  return panels;
}

/* C [S, N] += A [S, K] times a matrix [K, N] in panels, a few rows at a time, for which its numbers are read once. */
RL_ALONE static void rl_add_products(long S, long K, long N, const float *a, const float *panel, float *c) {
  for (long n = 0; n < N; n += RL_PANEL, panel += K * RL_PANEL)
    for (long s = 0; s < S; s += RL_FEW) {
      const long rows = S - s < RL_FEW ? S - s : RL_FEW, width = N - n < RL_PANEL ? N - n : RL_PANEL;
      float part[RL_FEW * RL_PANEL], *out = c + s * N + n;
      long c_row = N;
      if (width < RL_PANEL) {
        for (long i = 0; i < rows; i++) memcpy(part + i * RL_PANEL, out + i * N, sizeof(float) * width);
        out = part, c_row = RL_PANEL;
      }
      if (rows == RL_FEW) rl_tile(RL_FEW, RL_VECTORS, K, a + s * K, K, 1, panel, RL_PANEL, out, c_row, 1);
      else
        for (long i = 0; i < rows; i++)
          rl_tile(1, RL_VECTORS, K, a + (s + i) * K, K, 1, panel, RL_PANEL, out + i * c_row, c_row, 1);
      for (long i = 0; i < rows && out == part; i++)
        memcpy(c + (s + i) * N + n, part + i * RL_PANEL, sizeof(float) * width);
    }
}

/* Nothing of what is remembered, `state [S, H]`, is so where an episode begins. */
static void rl_forget(long S, long H, const unsigned char *first, float *state) {
  for (long s = 0; s < S; s++)
    if (first[s]) memset(state + s * H, 0, sizeof(float) * H);
}

typedef float rl_four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int rl_places __attribute__((vector_size(16)));
RL_ALONE static inline __attribute__((always_inline)) float rl_sum(rl_vector v) {
  rl_four x[RL_WIDTH / 4];
  memcpy(x, &v, sizeof(v));
  RL_UNROLL for (int i = 1; i < RL_WIDTH / 4; i++) x[0] += x[i];
  x[0] += __builtin_shuffle(x[0], (rl_places){2, 3, 0, 1});
  return x[0][0] + x[0][1];
}

/* A tile of the product below, of constant size: each number is a sum along a row of both. */
RL_ALONE static inline __attribute__((always_inline)) void rl_dots(const int rows, const int columns, long K,
                                                                   const float *a, const float *m, float *c, long c_row) {
  rl_vector sum[2][4];
  const long whole = K - K % RL_WIDTH;
  RL_UNROLL for (int i = 0; i < rows; i++)
    RL_UNROLL for (int j = 0; j < columns; j++) sum[i][j] = (rl_vector){0};
  for (long k = 0; k < whole; k += RL_WIDTH)
    RL_UNROLL for (int i = 0; i < rows; i++)
      RL_UNROLL for (int j = 0; j < columns; j++)
        sum[i][j] += *(const rl_vector *)(a + i * K + k) * *(const rl_vector *)(m + j * K + k);
  RL_UNROLL for (int i = 0; i < rows; i++)
    RL_UNROLL for (int j = 0; j < columns; j++) c[i * c_row + j] += rl_sum(sum[i][j]);
  for (long k = whole; k < K; k++)
    RL_UNROLL for (int i = 0; i < rows; i++)
      RL_UNROLL for (int j = 0; j < columns; j++) c[i * c_row + j] += a[i * K + k] * m[j * K + k];
}

/* C [S, N] += A [S, K] times a matrix [N, K] turned, once: panels pay for many rows alone. */
RL_ALONE static void rl_add_turned(long S, long K, long N, const float *a, const float *m, float *c) {
  if (S > 16) {
    float *panels = rl_panels(K, N, m, 1);
    rl_add_products(S, K, N, a, panels, c);
    free(panels);
    return;
  }
  const long rows = S - S % 2, columns = N - N % 4;
  for (long n = 0; n < columns; n += 4) {
    for (long s = 0; s < rows; s += 2) rl_dots(2, 4, K, a + s * K, m + n * K, c + s * N + n, N);
    if (rows < S) rl_dots(1, 4, K, a + rows * K, m + n * K, c + rows * N + n, N);
  }
  for (long n = columns; n < N; n++)
    for (long s = 0; s < S; s++) rl_dots(1, 1, K, a + s * K, m + n * K, c + s * N + n, N);
}

/* One row of a rollout: x [S, F] and what was remembered before it, to what is remembered after it. */
RL_ALONE static void rl_gru_row(long S, long F, long H, const float *x, const float *h, const unsigned char *first,
                                const float *w_x, const float *w_h, const float *b_x, const float *b_h, float *after) {
  float *from_x = (float *)malloc(sizeof(float) * S * 7 * H), *from_h = from_x + S * 3 * H, *old = from_h + S * 3 * H;
  for (long s = 0; s < S; s++) {
    memcpy(from_x + s * 3 * H, b_x, sizeof(float) * 3 * H);
    memcpy(from_h + s * 3 * H, b_h, sizeof(float) * 3 * H);
  }
  memcpy(old, h, sizeof(float) * S * H), rl_forget(S, H, first, old);
  rl_add_turned(S, F, 3 * H, x, w_x, from_x);
  rl_add_turned(S, H, 3 * H, old, w_h, from_h);
  for (long s = 0; s < S; s++) {
    const float *i = from_x + s * 3 * H, *g = from_h + s * 3 * H, *was = old + s * H;
    float *now = after + s * H;
    RL_APART for (long j = 0; j < H; j++) {
      float r = rl_sigmoid(i[j] + g[j]), z = rl_sigmoid(i[H + j] + g[H + j]);
      float n = rl_tanh(i[2 * H + j] + r * g[2 * H + j]);
      now[j] = n + z * (was[j] - n);
    }
  }
  free(from_x);
}

RL_ALONE static void rl_lstm_row(long S, long F, long H, const float *x, const float *h, const float *c,
                                 const unsigned char *first, const float *w_x, const float *w_h, const float *b_x,
                                 const float *b_h, float *h_after, float *c_after) {
  float *gates = (float *)malloc(sizeof(float) * S * 5 * H), *old = gates + S * 4 * H;
  for (long s = 0; s < S; s++)
    for (long j = 0; j < 4 * H; j++) gates[s * 4 * H + j] = b_x[j] + b_h[j];
  memcpy(old, h, sizeof(float) * S * H), rl_forget(S, H, first, old);
  rl_add_turned(S, F, 4 * H, x, w_x, gates);
  rl_add_turned(S, H, 4 * H, old, w_h, gates);
  memcpy(c_after, c, sizeof(float) * S * H), rl_forget(S, H, first, c_after);
  for (long s = 0; s < S; s++) {
    const float *in = gates + s * 4 * H, *f = in + H, *g = f + H, *o = g + H;
    float *cell = c_after + s * H, *now = h_after + s * H;
    RL_APART for (long j = 0; j < H; j++) {
      cell[j] = rl_sigmoid(f[j]) * cell[j] + rl_sigmoid(in[j]) * rl_tanh(g[j]);
      now[j] = rl_sigmoid(o[j]) * rl_tanh(cell[j]);
    }
  }
  free(gates);
}

RL_ALONE static void rl_gru_rows(long L, long S, long H, const float *x, const float *h, const unsigned char *first,
                                 const float *w, const float *b, float *before, float *gates, float *after) {
  float *panels = rl_panels(H, 3 * H, w, 1), *from = (float *)malloc(sizeof(float) * S * 3 * H);
  for (long t = 0; t < L; t++) {
    float *old = before + t * S * H, *now = after + t * S * H;
    memcpy(old, t ? now - S * H : h, sizeof(float) * S * H), rl_forget(S, H, first + t * S, old);
    for (long s = 0; s < S; s++) memcpy(from + s * 3 * H, b, sizeof(float) * 3 * H);
    rl_add_products(S, H, 3 * H, old, panels, from);
    for (long s = 0; s < S; s++, x += 3 * H, old += H, now += H) {
      const float *from_h = from + s * 3 * H;
      float *r = gates + (t * S + s) * 4 * H, *z = r + H, *n = z + H, *h_n = n + H;
      RL_APART for (long j = 0; j < H; j++) {
        r[j] = rl_sigmoid(x[j] + from_h[j]), z[j] = rl_sigmoid(x[H + j] + from_h[H + j]), h_n[j] = from_h[2 * H + j];
        n[j] = rl_tanh(x[2 * H + j] + r[j] * h_n[j]);
        now[j] = n[j] + z[j] * (old[j] - n[j]);
      }
    }
  }
  free(panels), free(from);
}

RL_ALONE static void rl_gru_slopes(long L, long S, long H, const float *slope, const float *gates, const float *before,
                                   const unsigned char *first, const float *w, float *into) {
  float *carry = (float *)calloc(S * H, sizeof(float)), *through = (float *)malloc(sizeof(float) * S * 3 * H);
  float *panels = rl_panels(3 * H, H, w, 0);
  for (long t = L - 1; t >= 0; t--) {
    for (long s = 0; s < S; s++) {
      const long i = t * S + s;
      float *mine = carry + s * H, *to = into + i * 4 * H, *via = through + s * 3 * H;
      const float *r = gates + i * 4 * H, *z = r + H, *n = z + H, *h_n = n + H, *old = before + i * H;
      RL_APART for (long j = 0; j < H; j++) {
        float total = mine[j] + slope[i * H + j], to_n = total * (1 - z[j]) * (1 - n[j] * n[j]);
        to[j] = via[j] = to_n * h_n[j] * r[j] * (1 - r[j]);
        to[H + j] = via[H + j] = total * (old[j] - n[j]) * z[j] * (1 - z[j]);
        to[2 * H + j] = to_n, to[3 * H + j] = via[2 * H + j] = to_n * r[j];
        mine[j] = total * z[j];
      }
    }
    rl_add_products(S, 3 * H, H, through, panels, carry);
    rl_forget(S, H, first + t * S, carry);
  }
  free(carry), free(through), free(panels);
}

RL_ALONE static void rl_lstm_rows(long L, long S, long H, const float *x, const float *h, const float *c,
                                  const unsigned char *first, const float *w, float *h_before, float *c_before,
                                  float *gates, float *after) {
  float *panels = rl_panels(H, 4 * H, w, 1), *cells = (float *)malloc(sizeof(float) * S * H);
  memcpy(cells, c, sizeof(float) * S * H);
  memcpy(gates, x, sizeof(float) * L * S * 4 * H);
  for (long t = 0; t < L; t++) {
    float *old = h_before + t * S * H, *cell = c_before + t * S * H, *now = after + t * S * H;
    float *into = gates + t * S * 4 * H;
    memcpy(old, t ? now - S * H : h, sizeof(float) * S * H), rl_forget(S, H, first + t * S, old);
    memcpy(cell, cells, sizeof(float) * S * H), rl_forget(S, H, first + t * S, cell);
    rl_add_products(S, H, 4 * H, old, panels, into);
    for (long s = 0; s < S; s++, cell += H) {
      float *in = into + s * 4 * H, *f = in + H, *g = f + H, *o = g + H, *mine = cells + s * H;
      RL_APART for (long j = 0; j < H; j++) {
        in[j] = rl_sigmoid(in[j]), f[j] = rl_sigmoid(f[j]), g[j] = rl_tanh(g[j]), o[j] = rl_sigmoid(o[j]);
        mine[j] = f[j] * cell[j] + in[j] * g[j];
        now[s * H + j] = o[j] * rl_tanh(mine[j]);
      }
    }
  }
  free(panels), free(cells);
}

RL_ALONE static void rl_lstm_slopes(long L, long S, long H, const float *slope, const float *gates, const float *before,
                                    const unsigned char *first, const float *w, float *into) {
  float *hs = (float *)calloc(S * H, sizeof(float)), *cs = (float *)calloc(S * H, sizeof(float));
  float *panels = rl_panels(4 * H, H, w, 0);
  for (long t = L - 1; t >= 0; t--) {
    for (long s = 0; s < S; s++) {
      const long i = t * S + s;
      float *h = hs + s * H, *cell = cs + s * H, *to = into + i * 4 * H;
      const float *in = gates + i * 4 * H, *f = in + H, *g = f + H, *o = g + H, *old = before + i * H;
      RL_APART for (long j = 0; j < H; j++) {
        float tanh = rl_tanh(f[j] * old[j] + in[j] * g[j]), to_h = h[j] + slope[i * H + j];
        float to_c = cell[j] + to_h * o[j] * (1 - tanh * tanh);
        to[j] = to_c * g[j] * in[j] * (1 - in[j]), to[H + j] = to_c * old[j] * f[j] * (1 - f[j]);
        to[2 * H + j] = to_c * in[j] * (1 - g[j] * g[j]), to[3 * H + j] = to_h * tanh * o[j] * (1 - o[j]);
        cell[j] = to_c * f[j];
      }
    }
    memset(hs, 0, sizeof(float) * S * H);
    rl_add_products(S, 4 * H, H, into + t * S * 4 * H, panels, hs);
    rl_forget(S, H, first + t * S, hs);
    rl_forget(S, H, first + t * S, cs);
  }
  free(hs), free(cs), free(panels);
}
