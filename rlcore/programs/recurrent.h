/* The loops of recurrent layers over the rows of a sequence, forward and back (see recurrent.py and
 * rlcore/networks/recurrent.py, whose loops these are). GNU C; all arrays are dense, row by row. */

typedef float rl_row __attribute__((vector_size(64), aligned(4), may_alias));
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

/* out [n] += v [K] times m [K, n]. */
RL_ALONE static void rl_add_product(long K, long n, const float *v, const float *m, float *out) {
  long j = 0;
  for (; j + 64 <= n; j += 64) {
    rl_row a = *(rl_row *)(out + j), b = *(rl_row *)(out + j + 16), c = *(rl_row *)(out + j + 32), d = *(rl_row *)(out + j + 48);
    const float *row = m + j;
    for (long k = 0; k < K; k++, row += n) {
      a += v[k] * *(const rl_row *)row;
      b += v[k] * *(const rl_row *)(row + 16);
      c += v[k] * *(const rl_row *)(row + 32);
      d += v[k] * *(const rl_row *)(row + 48);
    }
    *(rl_row *)(out + j) = a, *(rl_row *)(out + j + 16) = b, *(rl_row *)(out + j + 32) = c, *(rl_row *)(out + j + 48) = d;
  }
  for (; j + 16 <= n; j += 16) {
    rl_row a = *(rl_row *)(out + j);
    for (long k = 0; k < K; k++) a += v[k] * *(const rl_row *)(m + k * n + j);
    *(rl_row *)(out + j) = a;
  }
  for (; j < n; j++)
    for (long k = 0; k < K; k++) out[j] += v[k] * m[k * n + j];
}

static float *rl_transposed(long rows, long columns, const float *m) {
  float *out = (float *)malloc(sizeof(float) * rows * columns);
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < columns; j++) out[j * rows + i] = m[i * columns + j];
  return out;
}

RL_ALONE static void rl_gru_rows(long L, long S, long H, const float *x, const float *h, const unsigned char *first,
                                 const float *w, const float *b, float *before, float *gates, float *after) {
  float *turned = rl_transposed(3 * H, H, w), *from_h = (float *)malloc(sizeof(float) * 3 * H);
  for (long i = 0; i < L * S; i++, x += 3 * H) {
    float *old = before + i * H, *now = after + i * H, *r = gates + i * 4 * H, *z = r + H, *n = z + H, *h_n = n + H;
    const float *last = i < S ? h + i * H : now - S * H;
    memcpy(from_h, b, sizeof(float) * 3 * H);
    if (first[i]) memset(old, 0, sizeof(float) * H);
    else memcpy(old, last, sizeof(float) * H), rl_add_product(H, 3 * H, old, turned, from_h);
    RL_APART for (long j = 0; j < H; j++) {
      r[j] = rl_sigmoid(x[j] + from_h[j]), z[j] = rl_sigmoid(x[H + j] + from_h[H + j]), h_n[j] = from_h[2 * H + j];
      n[j] = rl_tanh(x[2 * H + j] + r[j] * h_n[j]);
      now[j] = n[j] + z[j] * (old[j] - n[j]);
    }
  }
  free(turned), free(from_h);
}

RL_ALONE static void rl_gru_slopes(long L, long S, long H, const float *slope, const float *gates, const float *before,
                                   const unsigned char *first, const float *w, float *into) {
  float *carry = (float *)calloc(S * H, sizeof(float)), *through = (float *)malloc(sizeof(float) * 3 * H);
  for (long i = L * S - 1; i >= 0; i--) {
    float *mine = carry + i % S * H, *to = into + i * 4 * H;
    const float *r = gates + i * 4 * H, *z = r + H, *n = z + H, *h_n = n + H, *old = before + i * H;
    RL_APART for (long j = 0; j < H; j++) {
      float total = mine[j] + slope[i * H + j], to_n = total * (1 - z[j]) * (1 - n[j] * n[j]);
      to[j] = through[j] = to_n * h_n[j] * r[j] * (1 - r[j]);
      to[H + j] = through[H + j] = total * (old[j] - n[j]) * z[j] * (1 - z[j]);
      to[2 * H + j] = to_n, to[3 * H + j] = through[2 * H + j] = to_n * r[j];
      mine[j] = total * z[j];
    }
    if (first[i]) memset(mine, 0, sizeof(float) * H);
    else rl_add_product(3 * H, H, through, w, mine);
  }
  free(carry), free(through);
}

RL_ALONE static void rl_lstm_rows(long L, long S, long H, const float *x, const float *h, const float *c,
                                  const unsigned char *first, const float *w, float *h_before, float *c_before,
                                  float *gates, float *after) {
  float *turned = rl_transposed(4 * H, H, w), *cells = (float *)malloc(sizeof(float) * S * H);
  memcpy(cells, c, sizeof(float) * S * H);
  for (long i = 0; i < L * S; i++) {
    float *old = h_before + i * H, *cell = c_before + i * H, *now = after + i * H, *mine = cells + i % S * H;
    float *in = gates + i * 4 * H, *f = in + H, *g = f + H, *o = g + H;
    const float *last = i < S ? h + i * H : now - S * H;
    memcpy(in, x + i * 4 * H, sizeof(float) * 4 * H);
    if (first[i]) memset(old, 0, sizeof(float) * H), memset(cell, 0, sizeof(float) * H);
    else {
      memcpy(old, last, sizeof(float) * H), memcpy(cell, mine, sizeof(float) * H);
      rl_add_product(H, 4 * H, old, turned, in);
    }
    RL_APART for (long j = 0; j < H; j++) {
      in[j] = rl_sigmoid(in[j]), f[j] = rl_sigmoid(f[j]), g[j] = rl_tanh(g[j]), o[j] = rl_sigmoid(o[j]);
      mine[j] = f[j] * cell[j] + in[j] * g[j];
      now[j] = o[j] * rl_tanh(mine[j]);
    }
  }
  free(turned), free(cells);
}

RL_ALONE static void rl_lstm_slopes(long L, long S, long H, const float *slope, const float *gates, const float *before,
                                    const unsigned char *first, const float *w, float *into) {
  float *hs = (float *)calloc(S * H, sizeof(float)), *cs = (float *)calloc(S * H, sizeof(float));
  for (long i = L * S - 1; i >= 0; i--) {
    float *h = hs + i % S * H, *cell = cs + i % S * H, *to = into + i * 4 * H;
    const float *in = gates + i * 4 * H, *f = in + H, *g = f + H, *o = g + H, *old = before + i * H;
    RL_APART for (long j = 0; j < H; j++) {
      float tanh = rl_tanh(f[j] * old[j] + in[j] * g[j]), to_h = h[j] + slope[i * H + j];
      float to_c = cell[j] + to_h * o[j] * (1 - tanh * tanh);
      to[j] = to_c * g[j] * in[j] * (1 - in[j]), to[H + j] = to_c * old[j] * f[j] * (1 - f[j]);
      to[2 * H + j] = to_c * in[j] * (1 - g[j] * g[j]), to[3 * H + j] = to_h * tanh * o[j] * (1 - o[j]);
      cell[j] = to_c * f[j];
    }
    memset(h, 0, sizeof(float) * H);
    if (first[i]) memset(cell, 0, sizeof(float) * H);
    else rl_add_product(4 * H, H, to, w, h);
  }
  free(hs), free(cs);
}
