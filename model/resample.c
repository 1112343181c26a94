/* Pillow's antialiased bicubic resize of RGB pictures, to the same bit, of a window of the result alone.
 *
 * Each pixel of the result is a weighted mean of the source's pixels around it: across the columns, rounded to 8 bits,
 * and down the rows, rounded again. The weights are 22-bit fixed point numbers, so sums are exact in any order and the
 * compiler may vectorise them; Pillow's own loops take them one by one. Which of the passes is first depends on the
 * sizes, as in Pillow 13. A pass that changes no size has the weights of the identity.
 *
 * Cubic convolution: R. Keys, IEEE Transactions on Acoustics, Speech, and Signal Processing 29(6), 1981, with a = -1/2.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__) || SIZE_MAX < UINT64_MAX
#error "GCC or Clang is needed, and a 64-bit platform; without this module Pillow does the same, slower"
#endif

enum { CHANNELS = 4, BITS = 22, HALF = 1 << (BITS - 1), LONGEST = 1 << 20 };
/* With sides of at most LONGEST (2^20) pixels
 * - no product of a side, a side and a pixel's bytes reaches 2^63, nor 4 * side a float's or an int's bounds;
 * - no sum overflows an int32: the absolute weights of a pixel add up to less than 1.3 * 2^22 (at most 1.27, just below
 *   the source's own size), and rounding adds at most 1/2 for each of 2^20; times 255, plus HALF, that is less than
 *   1.53 * 10^9 < 2^31. */

/* How one axis is resized: result i is made of the sources first[i] … first[i] + count[i] - 1. Its weights begin at
 * weights[i * stride]; each stands there once for each channel, and a zero follows an odd number of them. */
typedef struct {
    int32_t *first, *count, *weights;
    size_t stride;
} Axis;

/* Two pixels' channels. */
typedef int32_t Pair __attribute__((vector_size(2 * CHANNELS * sizeof(int32_t))));

/* What a call works on. `picture` has `width` pixels a row, `depth` bytes each, which are three or four; `out` gets
 * three each. For its window it needs `height` of the picture's rows, from `top` on, and `span` of its columns, from
 * `left` on. */
typedef struct {
    const uint8_t *picture;
    uint8_t *out;
    size_t depth, width, top, height, left, span, rows, columns;
    int down_first;
    Axis vertical, horizontal;
    uint8_t *middle; /* what the first pass has made: `height` rows of `columns` pixels, or one row of `span` */
    uint8_t *bytes;  /* a row of `columns` pixels */
    int32_t *line;   /* a row of `span` pixels, and one of zeros */
    int32_t *sums;   /* a row of `span` or of `columns` pixels */
} Work;

/* How far the kernel looks to either side. */
static double reach_of(int from, int to) { return 2.0 * fmax((double)from / to, 1.0); }

/* The most sources of one result, and one more. */
static size_t taps_of(int from, int to) { return (size_t)ceil(reach_of(from, to)) * 2 + 2; }

/* Result i is made of the sources first … end - 1: at least one, and both never fall as i grows. */
static void window_of(int from, int to, int i, int *first, int *end)
{
    double center = (i + 0.5) * ((double)from / to), reach = reach_of(from, to);
    *first = (int)fmax(center - reach + 0.5, 0.0);
    *end = (int)fmin(center + reach + 0.5, from);
}

static double cubic(double x)
{
    x = fabs(x);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return 0.0;
}

/* Fill in an axis for `number` results from `start` on; `exact` has room for taps_of() numbers. The operations on
 * doubles are Pillow's, one by one: in another order some weight would be rounded to another integer. */
static void weigh(Axis *axis, int from, int to, int start, int number, double *exact)
{
    double scale = (double)from / to, shrink = 1.0 / fmax(scale, 1.0);
    for (int i = 0; i < number; i++) {
        int first, end;
        window_of(from, to, start + i, &first, &end);
        double center = (start + i + 0.5) * scale, sum = 0.0;
        for (int k = 0; k < end - first; k++) {
            exact[k] = cubic((k + first - center + 0.5) * shrink);
            sum += exact[k];
        }
        int32_t *weights = axis->weights + i * axis->stride;
        for (int k = 0; k < end - first; k++) {
            double weight = exact[k] / sum * (1 << BITS);
            for (int c = 0; c < CHANNELS; c++) *weights++ = (int32_t)(weight + (weight < 0 ? -0.5 : 0.5));
        }
        memset(weights, 0, CHANNELS * sizeof *weights);
        axis->first[i] = first;
        axis->count[i] = end - first;
    }
}

#define INLINE static inline __attribute__((always_inline))

INLINE void round_off(const int32_t *restrict sums, size_t values, uint8_t *restrict out)
{
    for (size_t i = 0; i < values; i++) {
        int32_t value = sums[i] >> BITS;
        out[i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    }
}

/* One row, across: `row` has span pixels of `depth` bytes, `out` gets columns of CHANNELS bytes. */
INLINE void across(const Work *work, size_t depth, const uint8_t *restrict row, uint8_t *restrict out)
{
    const Axis *axis = &work->horizontal;
    if (depth == CHANNELS) {
        for (size_t i = 0; i < work->span * CHANNELS; i++) work->line[i] = row[i];
    } else {
        for (size_t x = 0; x < work->span; x++) {
            for (size_t c = 0; c < 3; c++) work->line[x * CHANNELS + c] = row[x * 3 + c];
            work->line[x * CHANNELS + 3] = 0;
        }
    }
    for (size_t x = 0; x < work->columns; x++) {
        const int32_t *source = work->line + (axis->first[x] - work->left) * CHANNELS;
        const int32_t *weights = axis->weights + x * axis->stride;
        Pair sum = {HALF, HALF, HALF, HALF}, pixels, factors;
        for (size_t k = 0; k < (size_t)axis->count[x] * CHANNELS; k += 2 * CHANNELS) {
            memcpy(&pixels, source + k, sizeof pixels);
            memcpy(&factors, weights + k, sizeof factors);
            sum += pixels * factors;
        }
        for (int c = 0; c < CHANNELS; c++) work->sums[x * CHANNELS + c] = sum[c] + sum[CHANNELS + c];
    }
    round_off(work->sums, work->columns * CHANNELS, out);
}

/* Row y of the window, down: `rows` begins at row `top`, and each of them is `step` bytes after the one before. */
INLINE void down(const Work *work, size_t y, const uint8_t *restrict rows, size_t step, size_t values,
                 uint8_t *restrict out)
{
    const Axis *axis = &work->vertical;
    const int32_t *weights = axis->weights + y * axis->stride;
    int32_t *restrict sums = work->sums;
    rows += (axis->first[y] - work->top) * step;
    for (size_t i = 0; i < values; i++) sums[i] = HALF;
    for (size_t k = 0; k < (size_t)axis->count[y]; k++) {
        for (size_t i = 0; i < values; i++) sums[i] += weights[k * CHANNELS] * rows[k * step + i];
    }
    round_off(sums, values, out);
}

INLINE void resample_depth(const Work *work, size_t depth)
{
    const uint8_t *corner = work->picture + (work->top * work->width + work->left) * depth;
    size_t step = work->width * depth, values = work->columns * CHANNELS;
    if (!work->down_first) {
        for (size_t y = 0; y < work->height; y++) across(work, depth, corner + y * step, work->middle + y * values);
    }
    for (size_t y = 0; y < work->rows; y++) {
        if (work->down_first) {
            down(work, y, corner, step, work->span * depth, work->middle);
            across(work, depth, work->middle, work->bytes);
        } else {
            down(work, y, work->middle, values, values, work->bytes);
        }
        uint8_t *out = work->out + y * work->columns * 3;
        for (size_t x = 0; x < work->columns; x++) {
            for (int c = 0; c < 3; c++) out[x * 3 + c] = work->bytes[x * CHANNELS + c];
        }
    }
}

INLINE void resample(const Work *work)
{
    if (work->depth == CHANNELS) resample_depth(work, CHANNELS);
    else resample_depth(work, 3);
}

static void resample_anywhere(const Work *work) { resample(work); }

#ifdef __x86_64__
#include <cpuid.h>

__attribute__((target("avx2"))) static void resample_avx2(const Work *work) { resample(work); }

/* Not __builtin_cpu_supports: built by Zig's compiler, it returns 0 for all. */
static int has_avx2(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0)); /* whether the system keeps the wide registers */
    return (a & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}
#else
#define resample_avx2 resample_anywhere
static int has_avx2(void) { return 0; }
#endif

static int avx2;

typedef struct {
    int height, width;
} Size;

/* The next `count` elements of the room at `*at`. */
static void *carve(char **at, size_t count, size_t size)
{
    void *room = *at;
    *at += count * size;
    return room;
}

/* Write to `out` the window at (top, left), of size `window`, of the picture as resized to size `to`. Needs no GIL.
 * Returns 0 where memory is lacking. */
static int run(const uint8_t *picture, size_t depth, Size from, Size to, int top, int left, Size window, uint8_t *out)
{
    Work work = {.picture = picture, .depth = depth, .out = out, .width = from.width,
                 .rows = window.height, .columns = window.width};
    int first, end;
    window_of(from.height, to.height, top, &first, &end);
    work.top = first;
    window_of(from.height, to.height, top + window.height - 1, &first, &end);
    work.height = end - work.top;
    window_of(from.width, to.width, left, &first, &end);
    work.left = first;
    window_of(from.width, to.width, left + window.width - 1, &first, &end);
    work.span = end - work.left;
    /* Pillow 13's rule: what makes the picture much lower is done first. */
    work.down_first = from.height > to.height && from.height - to.height > 2 * (from.width - to.width);

    size_t down_taps = taps_of(from.height, to.height), across_taps = taps_of(from.width, to.width);
    size_t taps = down_taps > across_taps ? down_taps : across_taps;
    /* In values. The weights of an axis are fewer than 4 * (4 * from + 3 * to), whatever the window is. */
    size_t row = work.columns * CHANNELS, line = (work.span + 1) * CHANNELS, widest = row > line ? row : line;
    size_t middle = work.down_first ? line : work.height * row;
    work.vertical.stride = down_taps * CHANNELS;
    work.horizontal.stride = across_taps * CHANNELS;
    size_t ints = work.rows * (work.vertical.stride + 2) + work.columns * (work.horizontal.stride + 2) + line + widest;
    char *room = malloc(taps * sizeof(double) + ints * sizeof(int32_t) + middle + row);
    if (room == NULL) return 0;
    char *at = room;
    double *exact = carve(&at, taps, sizeof(double));
    work.vertical.weights = carve(&at, work.rows * work.vertical.stride, sizeof(int32_t));
    work.vertical.first = carve(&at, work.rows, sizeof(int32_t));
    work.vertical.count = carve(&at, work.rows, sizeof(int32_t));
    work.horizontal.weights = carve(&at, work.columns * work.horizontal.stride, sizeof(int32_t));
    work.horizontal.first = carve(&at, work.columns, sizeof(int32_t));
    work.horizontal.count = carve(&at, work.columns, sizeof(int32_t));
    work.line = carve(&at, line, sizeof(int32_t));
    work.sums = carve(&at, widest, sizeof(int32_t));
    work.middle = carve(&at, middle, 1);
    work.bytes = carve(&at, row, 1);

    weigh(&work.vertical, from.height, to.height, top, window.height, exact);
    weigh(&work.horizontal, from.width, to.width, left, window.width, exact);
    memset(work.line + work.span * CHANNELS, 0, CHANNELS * sizeof(int32_t));
    if (avx2) resample_avx2(&work);
    else resample_anywhere(&work);
    free(room);
    return 1;
}

/* Arrow's C data interface, as far as it is read here: https://arrow.apache.org/docs/format/CDataInterface.html */
struct ArrowSchema {
    const char *format, *name, *metadata;
    int64_t flags, n_children;
    struct ArrowSchema **children, *dictionary;
    void (*release)(struct ArrowSchema *);
};
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children, *dictionary;
    void (*release)(struct ArrowArray *);
};

/* The bytes of an Arrow array of four bytes a pixel, and how many; NULL and an exception where it is another. */
static const uint8_t *arrow_bytes(PyObject *pair, int64_t *length)
{
    PyObject *one, *other;
    if (!PyArg_ParseTuple(pair, "OO;an Arrow array is a schema and an array", &one, &other)) return NULL;
    const struct ArrowSchema *schema = PyCapsule_GetPointer(one, "arrow_schema");
    if (schema == NULL) return NULL;
    const struct ArrowArray *array = PyCapsule_GetPointer(other, "arrow_array");
    if (array == NULL) return NULL;
    if (schema->release == NULL || array->release == NULL || strcmp(schema->format, "+w:4") != 0
        || strcmp(schema->children[0]->format, "C") != 0 || array->offset != 0 || array->children[0]->offset != 0) {
        PyErr_SetString(PyExc_ValueError, "the Arrow array has not four bytes for each pixel");
        return NULL;
    }
    *length = array->children[0]->length;
    return array->children[0]->buffers[1];
}

static int is_side(int length) { return 1 <= length && length <= LONGEST; }

static PyObject *window(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *picture;
    Size from, to, size;
    int top, left, done = 0;
    Py_buffer out, held = {0};
    if (!PyArg_ParseTuple(args, "O(ii)(ii)(ii)(ii)w*", &picture, &from.height, &from.width, &to.height, &to.width, &top,
                          &left, &size.height, &size.width, &out)) {
        return NULL;
    }
    int64_t length = 0;
    const uint8_t *bytes = NULL;
    if (PyTuple_Check(picture)) {
        bytes = arrow_bytes(picture, &length);
    } else if (PyObject_GetBuffer(picture, &held, PyBUF_SIMPLE) == 0) {
        bytes = held.buf;
        length = held.len;
    }
    if (bytes == NULL) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the picture is empty");
    } else if (!is_side(from.height) || !is_side(from.width) || !is_side(to.height) || !is_side(to.width)) {
        PyErr_Format(PyExc_ValueError, "each side must have 1 to %d pixels", LONGEST);
    } else if (length != 3 * (int64_t)from.height * from.width && length != 4 * (int64_t)from.height * from.width) {
        PyErr_SetString(PyExc_ValueError, "the picture must have height * width * 3 bytes, or 4");
    } else if (top < 0 || left < 0 || size.height < 1 || size.width < 1 || size.height > to.height - top
               || size.width > to.width - left) {
        PyErr_SetString(PyExc_ValueError, "the window must have pixels, and lie in the resized picture");
    } else if (out.len != (Py_ssize_t)size.height * size.width * 3) {
        PyErr_SetString(PyExc_ValueError, "the output must have height * width * 3 bytes of the window");
    } else {
        Py_BEGIN_ALLOW_THREADS
        done = run(bytes, length / from.height / from.width, from, to, top, left, size, out.buf);
        Py_END_ALLOW_THREADS
        if (!done) PyErr_NoMemory();
    }
    PyBuffer_Release(&held); /* nothing where there is none */
    PyBuffer_Release(&out);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"window", window, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_resample", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__resample(void)
{
    avx2 = has_avx2();
    return PyModuleDef_Init(&module);
}
