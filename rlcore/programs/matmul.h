/* Products of small matrices on processors with wide vectors, for the programs that rlcore compiles (see matmul.py).
 *
 * Written for what training a small network needs: sizes from a handful to a few thousand, operands that are views of
 * one another's transposes, calls that cost nothing. GNU C; inductor compiles it into each program. */

enum { RL_COLUMNS = 2 * RL_WIDTH, RL_DEPTH = 256, RL_WORK_FOR_THREADS = 2000000 };

/* A panel of C: up to RL_COLUMNS, the sum over up to 256 of k. */
typedef struct {
  long M, depth, width;                     /* rows, length of the sum, columns */
  const float *a; long a_row, a_column;     /* A from the first k on, its strides */
  const float *b; long b_row;               /* B's panel, row by row */
  float *c; long c_row;                     /* C's panel */
  int vectors, add;                         /* RL_WIDTH columns each; whether to add to what C holds */
} rl_panel;

#define RL_CASE(ROWS)                                                       \
  case ROWS:                                                                \
    if (p->vectors == 2)                                                    \
      rl_tile(ROWS, 2, p->depth, a, p->a_row, p->a_column, p->b, p->b_row, c, c_row, add); \
    else                                                                    \
      rl_tile(ROWS, 1, p->depth, a, p->a_row, p->a_column, p->b, p->b_row, c, c_row, add); \
    break;

RL_FAST static __attribute__((noinline)) void rl_tile_of(
    int rows, const rl_panel *p, const float *a, float *c, long c_row, int add) {
  switch (rows) {
    RL_CASE(1) RL_CASE(2) RL_CASE(3) RL_CASE(4)
#if RL_ROWS > 4
    RL_CASE(5) RL_CASE(6)
#endif
#if RL_ROWS > 6
    RL_CASE(7) RL_CASE(8)
#endif
  }
}

/* Rows m to m + RL_ROWS of a panel. */
RL_INLINE void rl_rows(const rl_panel *p, long m) {
  const int rows = p->M - m < RL_ROWS ? p->M - m : RL_ROWS;
  const float *a = p->a + m * p->a_row;
  float *c = p->c + m * p->c_row;
  if (p->width == RL_WIDTH * p->vectors) {
    rl_tile_of(rows, p, a, c, p->c_row, p->add);
    return;
  }
  float whole[RL_ROWS * RL_COLUMNS]; /* more columns than C has here */
  const int stride = RL_WIDTH * p->vectors;
  rl_tile_of(rows, p, a, whole, stride, 0);
  for (int i = 0; i < rows; i++)
    for (long j = 0; j < p->width; j++)
      c[i * p->c_row + j] = (p->add ? c[i * p->c_row + j] : 0.0f) + whole[i * stride + j];
}

/* A panel of B copied row by row; columns beyond the last are 0. */
RL_FAST static __attribute__((noinline)) void rl_pack(
    float *panel, int stride, long width, long depth, const float *b, long b_row, long b_column) {
  for (long k = 0; k < depth; k++)
    for (int j = 0; j < stride; j++) panel[k * stride + j] = j < width ? b[k * b_row + j * b_column] : 0.0f;
}

/* C [M, N] = A [M, K] B [K, N]; A and B with any strides, C row by row. */
RL_FAST static void rl_matmul(long M, long N, long K, const float *a, long a_row, long a_column,
    const float *b, long b_row, long b_column, float *c) {
  float packed[RL_DEPTH * RL_COLUMNS];
  for (long i = 0; K == 0 && i < M * N; i++) c[i] = 0.0f;
  for (long n = 0; n < N; n += RL_COLUMNS)
    for (long k = 0; k < K; k += RL_DEPTH) { /* a panel of B fits the first cache */
      rl_panel p = {M, K - k < RL_DEPTH ? K - k : RL_DEPTH, N - n < RL_COLUMNS ? N - n : RL_COLUMNS,
                    a + k * a_column, a_row, a_column, b + k * b_row + n * b_column, b_row, c + n, N, 0, k > 0};
      p.vectors = p.width > RL_WIDTH ? 2 : 1;
      if (p.width != RL_WIDTH * p.vectors || b_column != 1) {
        rl_pack(packed, RL_WIDTH * p.vectors, p.width, p.depth, p.b, b_row, b_column);
        p.b = packed;
        p.b_row = RL_WIDTH * p.vectors;
      }
      if (M * p.depth * p.width < RL_WORK_FOR_THREADS) {
        for (long m = 0; m < M; m += RL_ROWS) rl_rows(&p, m);
      } else {
#pragma omp parallel for
        for (long m = 0; m < M; m += RL_ROWS) rl_rows(&p, m);
      }
    }
}
