/* A channel MLP of bytes: linear, GELU, rounding to bytes, linear, residual. Part of kernels.c.
 *
 * Products are of uint8 inputs and int8 weights, summed exactly in int32 (VNNI). Each sum becomes a float and is
 * rounded or stored while it is in a register; the bytes between the layers stay in the cache: a block of rows passes
 * both layers before the next one.
 */
enum { TILE_ROWS = 6, TILE_COLUMNS = 64, BLOCK_ROWS = 16 * TILE_ROWS };

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")))

/* A linear layer. `weight` has, for each 64 outputs, their weights of four inputs at a time: (D / 64, C / 4, 64, 4).
 * An output is (sum + start) * scale + bias, where `start` takes off the input's zero point. */
typedef struct {
    const int8_t *weight;
    const int32_t *start;
    const float *scale, *bias;
    size_t in, out;
} Linear;

/* x * Phi(x), with an error below 2e-4, a fiftieth of a usual step of bytes: Phi(x) - 1/2 is x * P(x * x), cut where it
 * reaches 1/2. P has the least largest error. */
static inline __attribute__((always_inline)) VNNI __m512 gelu_of(__m512 x)
{
    const __m512 end = _mm512_set1_ps(3.9f);
    __m512 cut = _mm512_range_ps(x, end, 2); /* the lesser magnitude, with the sign of x */
    __m512 square = _mm512_mul_ps(cut, cut), sum = _mm512_set1_ps(2.88694268e-08f);
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(-1.91277258e-06f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(5.43162945e-05f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(-8.77795299e-04f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(9.09999975e-03f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(-6.5367448e-02f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(3.98562459e-01f));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(cut, sum, _mm512_set1_ps(0.5f)));
}

/* Sums of up to six rows, of 64 outputs each, from the weights of these outputs on. Their number is known at compile
 * time, and they are written out by macros: GCC keeps arrays of vectors in memory. */
static inline __attribute__((always_inline)) VNNI void multiply(const uint8_t *from, const size_t rows, size_t in,
                                                                const int8_t *weight, const int32_t *start,
                                                                int32_t sums[TILE_ROWS * TILE_COLUMNS])
{
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define START(row)                                                                                                     \
    __m512i a##row = _mm512_loadu_si512(start), b##row = _mm512_loadu_si512(start + WIDTH);                            \
    __m512i c##row = _mm512_loadu_si512(start + 2 * WIDTH), d##row = _mm512_loadu_si512(start + 3 * WIDTH);
#define ADD(row)                                                                                                       \
    if (row < rows) {                                                                                                  \
        int32_t four;                                                                                                  \
        __builtin_memcpy(&four, from + row * in + at, 4);                                                              \
        __m512i inputs = _mm512_set1_epi32(four);                                                                      \
        a##row = _mm512_dpbusd_epi32(a##row, inputs, a);                                                               \
        b##row = _mm512_dpbusd_epi32(b##row, inputs, b);                                                               \
        c##row = _mm512_dpbusd_epi32(c##row, inputs, c);                                                               \
        d##row = _mm512_dpbusd_epi32(d##row, inputs, d);                                                               \
    }
#define KEEP(row)                                                                                                      \
    if (row < rows) {                                                                                                  \
        int32_t *to = sums + row * TILE_COLUMNS;                                                                       \
        _mm512_store_si512(to, a##row);                                                                                \
        _mm512_store_si512(to + WIDTH, b##row);                                                                        \
        _mm512_store_si512(to + 2 * WIDTH, c##row);                                                                    \
        _mm512_store_si512(to + 3 * WIDTH, d##row);                                                                    \
    }
    EACH_ROW(START)
    for (size_t at = 0; at < in; at += 4, weight += 4 * TILE_COLUMNS) {
        __m512i a = _mm512_loadu_si512(weight), b = _mm512_loadu_si512(weight + 64);
        __m512i c = _mm512_loadu_si512(weight + 128), d = _mm512_loadu_si512(weight + 192);
        EACH_ROW(ADD)
    }
    EACH_ROW(KEEP)
    /* The sums are read from memory, so that the loop above has all registers. */
    __asm__ volatile("" ::: "memory");
#undef EACH_ROW
#undef START
#undef ADD
#undef KEEP
}

/* 64 outputs of up to six rows, from `column` on: `to_bytes` after a GELU, or as bfloat16 plus the residual. */
static inline __attribute__((always_inline)) VNNI void
tile(const Linear *layer, const uint8_t *from, const size_t rows, size_t column, uint8_t *to_bytes, Bytes bytes,
     const BFloat16 *residual, BFloat16 *to)
{
    _Alignas(64) int32_t sums[TILE_ROWS * TILE_COLUMNS];
    multiply(from, rows, layer->in, layer->weight + column * layer->in, layer->start + column, sums);
    const __m512 per_step = _mm512_set1_ps(bytes.per_step), zero = _mm512_set1_ps((float)bytes.zero);
    for (size_t at = 0; at < TILE_COLUMNS; at += WIDTH) {
        size_t here = column + at;
        __m512 scale = _mm512_loadu_ps(layer->scale + here), bias = _mm512_loadu_ps(layer->bias + here);
        for (size_t row = 0; row < rows; row++) {
            __m512 x = _mm512_cvtepi32_ps(_mm512_load_si512(sums + row * TILE_COLUMNS + at));
            size_t place = row * layer->out + here;
            x = _mm512_fmadd_ps(x, scale, bias);
            if (to_bytes) {
                __m512i steps = _mm512_cvtps_epi32(_mm512_fmadd_ps(gelu_of(x), per_step, zero));
                _mm_storeu_si128((__m128i *)(to_bytes + place),
                                 _mm512_cvtusepi32_epi8(_mm512_max_epi32(steps, _mm512_setzero_si512())));
            } else {
                store(to + place, WIDTH, _mm512_add_ps(x, load(residual + place, WIDTH)));
            }
        }
    }
}

/* A linear layer of a block of rows. Weights of 64 outputs stay in the first cache while all rows pass them. */
static inline __attribute__((always_inline)) VNNI void
linear_rows(const Linear *layer, const uint8_t *from, size_t rows, uint8_t *to_bytes, Bytes bytes,
            const BFloat16 *residual, BFloat16 *to)
{
#define TILE(count)                                                                                                    \
    tile(layer, from + row * layer->in, count, column, to_bytes ? to_bytes + row * layer->out : NULL, bytes,           \
         residual ? residual + row * layer->out : NULL, to ? to + row * layer->out : NULL)
    for (size_t column = 0; column < layer->out; column += TILE_COLUMNS) {
        size_t row = 0;
        for (; row + TILE_ROWS <= rows; row += TILE_ROWS) TILE(TILE_ROWS);
        switch (rows - row) {
        case 5: TILE(5); break;
        case 4: TILE(4); break;
        case 3: TILE(3); break;
        case 2: TILE(2); break;
        case 1: TILE(1); break;
        }
    }
#undef TILE
}

/* What the threads of a call share: to = residual + second(bytes(GELU(first(x)))), by row. Each thread takes a block of
 * rows after the other; a row's output does not depend on the block. */
typedef struct {
    const uint8_t *x;
    const BFloat16 *residual;
    BFloat16 *to;
    size_t rows, block;
    Linear first, second;
    Bytes bytes;
    uint8_t *between; /* for each thread room for BLOCK_ROWS rows of the first layer's outputs */
    size_t next_block, next_thread;
} ChannelMLP;

VNNI static void channel_mlp(void *shared)
{
    ChannelMLP *mlp = shared;
    const Linear first = mlp->first, second = mlp->second;
    size_t thread = __atomic_fetch_add(&mlp->next_thread, 1, __ATOMIC_RELAXED);
    uint8_t *between = mlp->between + thread * BLOCK_ROWS * first.out;
    for (;;) {
        size_t row = __atomic_fetch_add(&mlp->next_block, 1, __ATOMIC_RELAXED) * mlp->block;
        if (row >= mlp->rows) return;
        size_t count = mlp->rows - row < mlp->block ? mlp->rows - row : mlp->block, at = row * second.out;
        linear_rows(&first, mlp->x + row * first.in, count, between, mlp->bytes, NULL, NULL);
        linear_rows(&second, between, count, NULL, mlp->bytes, mlp->residual + at, mlp->to + at);
    }
}

/* OpenMP's way to run a function in so many threads: torch's threads, if it is the function of torch's library. */
typedef void (*Parallel)(void (*function)(void *), void *shared, unsigned threads, unsigned flags);

static int run_channel_mlp(ChannelMLP *mlp, Parallel parallel, size_t threads)
{
    size_t share = (mlp->rows + threads - 1) / threads;
    share = (share + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    mlp->block = share < BLOCK_ROWS ? share : BLOCK_ROWS;
    mlp->between = malloc(threads * BLOCK_ROWS * mlp->first.out);
    if (!mlp->between) return 0;
    if (threads > 1) parallel(channel_mlp, mlp, (unsigned)threads, 0);
    else channel_mlp(mlp);
    free(mlp->between);
    return 1;
}
