/* What products of small matrices are made of: a tile of C that stays in registers. GNU C; spliced into programs and
 * libraries in front of what uses it (see matmul.py, recurrent.py). */

#ifndef RL_TILE
#define RL_TILE
#if defined(__AVX512F__)
#define RL_BYTES 64 /* of a vector */
#define RL_ROWS 8   /* of a tile two vectors wide, whose sums the registers hold */
#elif defined(__AVX__)
#define RL_BYTES 32
#define RL_ROWS 6
#else
#define RL_BYTES 16
#define RL_ROWS 4
#endif
#define RL_FEW (RL_ROWS / 2 & ~1) /* the same, four vectors wide */
typedef float rl_vector __attribute__((vector_size(RL_BYTES), aligned(4), may_alias));
enum { RL_WIDTH = RL_BYTES / 4, RL_VECTORS = 4 };
#define RL_UNROLL _Pragma("GCC unroll 16")
/* Programs are compiled with -O1, where "O3" alone leaves products and sums apart: they are fused by the third. */
#define RL_FAST __attribute__((optimize("O3", "fp-contract=fast", "expensive-optimizations")))
#define RL_INLINE RL_FAST static inline __attribute__((always_inline))

/* C = A B, or with `add` C += A B, for rows × (vectors of columns) of C while k runs to `depth`; A with any strides, B
 * and C with strides from row to row. Rows and vectors are constants where this is used. */
RL_INLINE void rl_tile(const int rows, const int vectors, long depth, const float *a, long a_row, long a_column,
                       const float *b, long b_row, float *c, long c_row, int add) {
  rl_vector sum[RL_ROWS][RL_VECTORS];
  RL_UNROLL for (int i = 0; i < rows; i++)
    RL_UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = (rl_vector){0};
  for (long k = 0; k < depth; k++) {
    rl_vector right[RL_VECTORS];
    RL_UNROLL for (int j = 0; j < vectors; j++) right[j] = *(const rl_vector *)(b + k * b_row + RL_WIDTH * j);
    RL_UNROLL for (int i = 0; i < rows; i++) {
      float left = a[i * a_row + k * a_column];
      RL_UNROLL for (int j = 0; j < vectors; j++) sum[i][j] += left * right[j];
    }
  }
  RL_UNROLL for (int i = 0; i < rows; i++)
    RL_UNROLL for (int j = 0; j < vectors; j++) {
      rl_vector *out = (rl_vector *)(c + i * c_row + RL_WIDTH * j);
      *out = add ? *out + sum[i][j] : sum[i][j];
    }
}
#endif
