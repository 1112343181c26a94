/* What lies between a network's matrix products, in one pass each, with AVX-512: layer norms, softmax, a scale and a
 * shift by channel, and rounding to bytes. torch takes several passes, or leaves narrow rows to scalar code. linear.h has
 * linear layers with what follows them, labels.h what follows a segmenter.
 *
 * Numbers are read as bfloat16 and written as that or as uint8; in between they are float32. A row is computed the same
 * way wherever it stands, so that an answer does not depend on the batch. One thread computes all but linear layers: the
 * passes are short, and their callers run side by side.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#if !defined(__x86_64__) || !defined(__GNUC__)
#error "GCC or Clang is needed, and an x86-64 processor; without this module torch computes the same, slower"
#endif
#include <cpuid.h>
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define INLINE static inline __attribute__((always_inline)) AVX512

typedef uint16_t BFloat16;
enum { WIDTH = 16, LONGEST = 4096 }; /* numbers of a vector, and of a row that is normalised */

/* How a float x is stored as a byte: round(x * per_step) + zero, cut to 0 … 255. */
typedef struct {
    float per_step;
    int zero;
} Bytes;

INLINE __mmask16 mask_of(size_t left) { return left >= WIDTH ? 0xFFFF : (__mmask16)((1u << left) - 1); }

/* The first `left` of sixteen values, then zeros. */
INLINE __m512 load_floats(const float *from, size_t left)
{
    return left >= WIDTH ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(mask_of(left), from);
}

INLINE __m512 load(const BFloat16 *from, size_t left)
{
    __m256i bits = left >= WIDTH ? _mm256_loadu_si256((const __m256i *)from)
                                 : _mm256_maskz_loadu_epi16(mask_of(left), from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/* The first `left` of the values, rounded to the nearest. Only full vectors are stored at once: some processors take
 * dozens of cycles for a masked store of narrow numbers. */
INLINE void store(BFloat16 *to, size_t left, __m512 x)
{
    BFloat16 rest[WIDTH];
    _mm256_storeu_si256((__m256i *)(left >= WIDTH ? to : rest), (__m256i)_mm512_cvtneps_pbh(x));
    for (size_t i = 0; left < WIDTH && i < left; i++) to[i] = rest[i];
}

/* The first `left` of sixteen numbers that are not negative, cut to 255. */
INLINE void store_narrow(uint8_t *to, size_t left, __m512i x)
{
    uint8_t rest[WIDTH];
    _mm_storeu_si128((__m128i *)(left >= WIDTH ? to : rest), _mm512_cvtusepi32_epi8(x));
    for (size_t i = 0; left < WIDTH && i < left; i++) to[i] = rest[i];
}

INLINE void store_bytes(uint8_t *to, size_t left, __m512 x, Bytes bytes)
{
    /* Below the bounds of an int; the bytes end far below. */
    x = _mm512_min_ps(_mm512_set1_ps(1024.0f), _mm512_mul_ps(x, _mm512_set1_ps(bytes.per_step)));
    __m512i steps = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(bytes.zero));
    store_narrow(to, left, _mm512_max_epi32(steps, _mm512_setzero_si512()));
}

/* exp(x) for x ≤ 0, with a relative error of about 2^-22; 0 below -87. exp(x) = 2^n * exp(r), |r| ≤ ln(2) / 2, and a
 * Taylor polynomial for exp(r). */
INLINE __m512 exp_of(__m512 x)
{
    const __m512 least = _mm512_set1_ps(-87.0f);
    __mmask16 tiny = _mm512_cmp_ps_mask(x, least, _CMP_LT_OQ);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    /* ln(2) in two parts, the first of few bits, so that n times it is exact. */
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 sum = _mm512_set1_ps(1.0f / 720);
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 120));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 24));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 6));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f));
    return _mm512_mask_mov_ps(_mm512_scalef_ps(sum, n), tiny, _mm512_setzero_ps());
}

/* Loops over a row take full vectors, then the rest, whose length is not known at compile time. */
#define FOR_VECTORS(at, length, left, ...)                                                                             \
    do {                                                                                                               \
        size_t at = 0;                                                                                                 \
        for (; at + WIDTH <= (length); at += WIDTH) {                                                                  \
            const size_t left = WIDTH;                                                                                 \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
        if (at < (length)) {                                                                                           \
            const size_t left = (length) - at;                                                                         \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

/* (x - mean) / sqrt(variance + eps) * weight + bias, by row, into one of `to` and `to_bytes`. */
INLINE void norm_rows(const BFloat16 *from, BFloat16 *to, uint8_t *to_bytes, size_t rows, size_t channels,
                      const float *weight, const float *bias, float eps, Bytes bytes)
{
    float values[LONGEST];
    for (size_t row = 0; row < rows; row++) {
        size_t first = row * channels;
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        FOR_VECTORS(at, channels, left, {
            __m512 x = load(from + first + at, left);
            sum = _mm512_add_ps(sum, x);
            _mm512_storeu_ps(values + at, x);
        });
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)channels);
        FOR_VECTORS(at, channels, left, {
            __m512 x = _mm512_maskz_sub_ps(mask_of(left), _mm512_loadu_ps(values + at), mean);
            squares = _mm512_fmadd_ps(x, x, squares);
            _mm512_storeu_ps(values + at, x);
        });
        __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)channels + eps));
        FOR_VECTORS(at, channels, left, {
            __m512 x = _mm512_mul_ps(_mm512_loadu_ps(values + at), scale);
            x = _mm512_fmadd_ps(x, load_floats(weight + at, left), load_floats(bias + at, left));
            if (to_bytes) store_bytes(to_bytes + first + at, left, x, bytes);
            else store(to + first + at, left, x);
        });
    }
}

AVX512 static void norm(const BFloat16 *from, BFloat16 *to, size_t rows, size_t channels, const float *weight,
                        const float *bias, float eps)
{
    norm_rows(from, to, NULL, rows, channels, weight, bias, eps, (Bytes){0});
}

AVX512 static void norm_to_bytes(const BFloat16 *from, uint8_t *to, size_t rows, size_t channels, const float *weight,
                                 const float *bias, float eps, Bytes bytes)
{
    norm_rows(from, NULL, to, rows, channels, weight, bias, eps, bytes);
}

/* softmax(x * scale + bias) by row, in place; row i has the bias of row i modulo `biases`, where there are any. */
AVX512 static void softmax(BFloat16 *x, size_t rows, size_t length, float scale, const BFloat16 *bias, size_t biases)
{
    float values[LONGEST];
    for (size_t row = 0; row < rows; row++) {
        size_t first = row * length, other = biases ? row % biases * length : 0;
        __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        __mmask16 unknown = 0;
        FOR_VECTORS(at, length, left, {
            __m512 value = _mm512_mul_ps(load(x + first + at, left), _mm512_set1_ps(scale));
            if (biases) value = _mm512_add_ps(value, load(bias + other + at, left));
            unknown |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
            most = _mm512_mask_max_ps(most, mask_of(left), most, value);
            _mm512_storeu_ps(values + at, value);
        });
        /* The maximum of numbers and NaN may be a number. */
        __m512 top = _mm512_set1_ps(unknown ? NAN : _mm512_reduce_max_ps(most));
        FOR_VECTORS(at, length, left, {
            __m512 value = exp_of(_mm512_sub_ps(_mm512_loadu_ps(values + at), top));
            value = _mm512_maskz_mov_ps(mask_of(left), value);
            _mm512_storeu_ps(values + at, value);
            sum = _mm512_add_ps(sum, value);
        });
        __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
        FOR_VECTORS(at, length, left,
                    { store(x + first + at, left, _mm512_mul_ps(_mm512_loadu_ps(values + at), share)); });
    }
}

/* x * scale + shift by channel. */
AVX512 static void affine(const BFloat16 *from, BFloat16 *to, size_t rows, size_t channels, const float *scale,
                          const float *shift)
{
    for (size_t row = 0; row < rows; row++, from += channels, to += channels)
        FOR_VECTORS(at, channels, left, {
            __m512 x = load(from + at, left);
            store(to + at, left, _mm512_fmadd_ps(x, load_floats(scale + at, left), load_floats(shift + at, left)));
        });
}

AVX512 static void to_bytes(const BFloat16 *from, uint8_t *to, size_t count, Bytes bytes)
{
    FOR_VECTORS(at, count, left, { store_bytes(to + at, left, load(from + at, left), bytes); });
}

#include "labels.h"
#include "linear.h"

static void *memory(unsigned long long address) { return (void *)(uintptr_t)address; }

static PyObject *layer_norm_(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long from, to, weight, bias;
    Py_ssize_t rows, channels;
    float eps, step;
    int zero;
    if (!PyArg_ParseTuple(args, "KKnnKKffi", &from, &to, &rows, &channels, &weight, &bias, &eps, &step, &zero)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    if (step > 0) {
        norm_to_bytes(memory(from), memory(to), (size_t)rows, (size_t)channels, memory(weight), memory(bias), eps,
                      (Bytes){1.0f / step, zero});
    } else {
        norm(memory(from), memory(to), (size_t)rows, (size_t)channels, memory(weight), memory(bias), eps);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *softmax_(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long x, bias;
    Py_ssize_t rows, length, biases;
    float scale;
    if (!PyArg_ParseTuple(args, "KnnfKn", &x, &rows, &length, &scale, &bias, &biases)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    softmax(memory(x), (size_t)rows, (size_t)length, scale, memory(bias), (size_t)biases);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *scale_and_shift_(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long from, to, scale, shift;
    Py_ssize_t rows, channels;
    if (!PyArg_ParseTuple(args, "KKnnKK", &from, &to, &rows, &channels, &scale, &shift)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    affine(memory(from), memory(to), (size_t)rows, (size_t)channels, memory(scale), memory(shift));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *quantise_(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long from, to;
    Py_ssize_t count;
    float step;
    int zero;
    if (!PyArg_ParseTuple(args, "KKnfi", &from, &to, &count, &step, &zero)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    to_bytes(memory(from), memory(to), (size_t)count, (Bytes){1.0f / step, zero});
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *channel_mlp_(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long x, residual, out, first[4], second[4], parallel;
    Py_ssize_t rows, channels, hidden, threads;
    float step;
    int zero, done;
    if (!PyArg_ParseTuple(args, "KKKnnn(KKKK)(KKKK)fiKn", &x, &residual, &out, &rows, &channels, &hidden, &first[0],
                          &first[1], &first[2], &first[3], &second[0], &second[1], &second[2], &second[3], &step, &zero,
                          &parallel, &threads)) {
        return NULL;
    }
    size_t in = (size_t)channels, between = (size_t)hidden;
    Work work = {
        .x = memory(x),
        .rows = (size_t)rows,
        .first = {memory(first[0]), memory(first[1]), memory(first[2]), memory(first[3]), in, between},
        .second = {memory(second[0]), memory(second[1]), memory(second[2]), memory(second[3]), between, in},
        .output = {.halves = memory(out), .residual = memory(residual), .bytes = {1.0f / step, zero}},
    };
    Py_BEGIN_ALLOW_THREADS
    done = run(channel_mlp, &work, (Parallel)(uintptr_t)parallel, (size_t)threads, between);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *linear_(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long x, residual, out, weight, bias, parallel;
    Py_ssize_t rows, in, outputs, threads;
    int finish;
    if (!PyArg_ParseTuple(args, "KKKnnnKKiKn", &x, &residual, &out, &rows, &in, &outputs, &weight, &bias, &finish,
                          &parallel, &threads)) {
        return NULL;
    }
    Work work = {
        .x = memory(x),
        .rows = (size_t)rows,
        .first = {.weight = memory(weight), .bias = memory(bias), .in_bytes = 2 * (size_t)in, .out = (size_t)outputs},
        .finish = residual ? ADD_RESIDUAL : (Finish)finish,
        .output = {.halves = memory(out), .residual = memory(residual)},
    };
    Py_BEGIN_ALLOW_THREADS
    run(linear, &work, (Parallel)(uintptr_t)parallel, (size_t)threads, 0);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *label_rows_(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long logits, axes[4][3], labels, levels, odds, counts, sums;
    Py_ssize_t width, classes, stride, input_width, picture_width, first, last;
    int done;
    if (!PyArg_ParseTuple(args, "Knnn(KKK)(KKK)n(KKK)(KKK)nKKKKKnn", &logits, &width, &classes, &stride, &axes[0][0],
                          &axes[0][1], &axes[0][2], &axes[1][0], &axes[1][1], &axes[1][2], &input_width, &axes[2][0],
                          &axes[2][1], &axes[2][2], &axes[3][0], &axes[3][1], &axes[3][2], &picture_width, &labels,
                          &levels, &odds, &counts, &sums, &first, &last)) {
        return NULL;
    }
    Axis of[4];
    for (int i = 0; i < 4; i++) of[i] = (Axis){memory(axes[i][0]), memory(axes[i][1]), memory(axes[i][2])};
    Labelling job = {
        memory(logits), (size_t)width,      (size_t)classes, (size_t)stride,        of[0],
        of[1],          (size_t)input_width, of[2],           of[3],                 (size_t)picture_width,
        memory(labels), memory(levels),     memory(odds),    memory(counts), memory(sums),
    };
    Py_BEGIN_ALLOW_THREADS
    done = label_rows(&job, (size_t)first, (size_t)last);
    Py_END_ALLOW_THREADS
    if (done < 0) return PyErr_NoMemory();
    return PyBool_FromLong(done);
}

/* Whether the processor has AVX-512 F, BW, VL, DQ and BF16, and the system keeps its registers. Not
 * __builtin_cpu_supports: built by Zig's compiler, it returns 0 for all. */
static PyObject *available(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    unsigned a, b, c, d, kept, high;
    const unsigned wide = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL, registers = 0xE6, bf16 = 1u << 5;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) Py_RETURN_FALSE;
    __asm__ volatile("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
    if ((kept & registers) != registers || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & wide) != wide) {
        Py_RETURN_FALSE;
    }
    return PyBool_FromLong(__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bf16));
}

static PyMethodDef methods[] = {{"available", available, METH_NOARGS, NULL},
                                {"layer_norm", layer_norm_, METH_VARARGS, NULL},
                                {"softmax", softmax_, METH_VARARGS, NULL},
                                {"scale_and_shift", scale_and_shift_, METH_VARARGS, NULL},
                                {"quantise", quantise_, METH_VARARGS, NULL},
                                {"channel_mlp", channel_mlp_, METH_VARARGS, NULL},
                                {"linear", linear_, METH_VARARGS, NULL},
                                {"label_rows", label_rows_, METH_VARARGS, NULL},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&module); }
