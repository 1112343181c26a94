/* Pillow's antialiased bicubic resize of RGB pictures, to the same bit, of a window of the result alone.
 *
 * Each pixel of the result is a weighted mean of the source's pixels around it: across the columns, rounded to 8 bits,
 * and down the rows, rounded again. The weights are 22-bit fixed point numbers, so sums are exact in any order and
 * can be vectorised; Pillow's own loops take them one by one. Which of the passes is first depends on the sizes, as in
 * Pillow 13. A pass that changes no size has the weights of the identity.
 *
 * Cubic convolution: R. Keys, IEEE Transactions on Acoustics, Speech, and Signal Processing 29(6), 1981, with a = -1/2.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__) || SIZE_MAX < UINT64_MAX
#error "GCC or Clang is needed, and a 64-bit platform; without this module Pillow does the same, slower"
#endif

enum { BITS = 22, HALF = 1 << (BITS - 1), LONGEST = 1 << 20, MOST = 1 << 28, GROUP = 4, BLOCK = 32 };
/* With sides of at most LONGEST (2^20) pixels
 * - no product of a side, a side and a pixel's bytes reaches 2^63, nor 4 * side a float's or an int's bounds;
 * - no sum overflows an int32: the absolute weights of a pixel add up to less than 1.3 * 2^22 (at most 1.27, just below
 *   the source's own size), and rounding adds at most 1/2 for each of 2^20; times 255, plus HALF, that is less than
 *   1.53 * 10^9 < 2^31. */

/* How one axis is resized: result i is made of the sources first[i] … first[i] + count[i] - 1. Its weights begin at
 * weights[i * stride], in `groups` groups of GROUP; zeros follow them. */
typedef struct {
    int32_t *first, *count, *weights;
    size_t stride, groups;
} Axis;

/* What a call works on. `picture` ends at `end` and has `width` pixels a row, `depth` bytes each, which are three or
 * four; `out` gets three each. For its window it needs `height` of the picture's rows, from `top` on, and `span` of its
 * columns, from `left` on. */
typedef struct {
    const uint8_t *picture, *end;
    uint8_t *out;
    size_t depth, width, top, height, left, span, rows, columns;
    int down_first;
    Axis vertical, horizontal;
    uint8_t *middle; /* what the first pass has made: `height` rows of `columns` pixels of three bytes */
    uint8_t *line;   /* `span` pixels of the picture, or of what the first pass has made of its rows; then zeros */
    size_t read;     /* the bytes of `span` pixels, and what `across` may read behind them */
    int32_t *sums;   /* of the values of `span` pixels, or of `columns` pixels */
} Work;

/* How far the kernel looks to either side. */
static double reach_of(int from, int to) { return 2.0 * fmax((double)from / to, 1.0); }

/* The most sources of one result, and one more. */
static size_t taps_of(int from, int to) { return (size_t)ceil(reach_of(from, to)) * 2 + 2; }

static size_t whole_groups(size_t taps) { return (taps + GROUP - 1) / GROUP * GROUP; }

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
        size_t count = end - first, groups = whole_groups(count) / GROUP;
        for (size_t k = 0; k < count; k++) {
            double weight = exact[k] / sum * (1 << BITS);
            weights[k] = (int32_t)(weight + (weight < 0 ? -0.5 : 0.5));
        }
        memset(weights + count, 0, (axis->stride - count) * sizeof *weights);
        axis->first[i] = first;
        axis->count[i] = (int32_t)count;
        if (groups > axis->groups) axis->groups = groups;
    }
}

static uint8_t rounded(int32_t sum)
{
    int32_t value = sum >> BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* One row, across: `row` has `span` pixels, `out` gets `columns` pixels of three bytes. */
static void across_anywhere(const Work *work, const uint8_t *restrict row, uint8_t *restrict out)
{
    const Axis *axis = &work->horizontal;
    for (size_t x = 0; x < work->columns; x++, out += 3) {
        const uint8_t *source = row + (axis->first[x] - work->left) * work->depth;
        const int32_t *weights = axis->weights + x * axis->stride;
        int32_t red = HALF, green = HALF, blue = HALF;
        for (size_t k = 0; k < (size_t)axis->count[x]; k++, source += work->depth) {
            red += weights[k] * source[0];
            green += weights[k] * source[1];
            blue += weights[k] * source[2];
        }
        out[0] = rounded(red);
        out[1] = rounded(green);
        out[2] = rounded(blue);
    }
}

/* Row y of the window, down: `rows` begins at row `top`, and each of them is `step` bytes after the one before. */
static void down_anywhere(const Work *work, size_t y, const uint8_t *restrict rows, size_t step, size_t values,
                          uint8_t *restrict out)
{
    const Axis *axis = &work->vertical;
    const int32_t *weights = axis->weights + y * axis->stride;
    int32_t *restrict sums = work->sums;
    rows += (axis->first[y] - work->top) * step;
    for (size_t i = 0; i < values; i++) sums[i] = HALF;
    for (size_t k = 0; k < (size_t)axis->count[y]; k++) {
        for (size_t i = 0; i < values; i++) sums[i] += weights[k] * rows[k * step + i];
    }
    for (size_t i = 0; i < values; i++) out[i] = rounded(sums[i]);
}

#ifdef __x86_64__
#include "resample_avx2.h"
#else
#define across_avx2 across_anywhere
#define down_avx2 down_anywhere
static void split(Axis *axis, size_t number) { (void)axis, (void)number; }
static int has_avx2(void) { return 0; }
#endif

static int avx2;

typedef void Across(const Work *work, const uint8_t *row, uint8_t *out);
typedef void Down(const Work *work, size_t y, const uint8_t *rows, size_t step, size_t values, uint8_t *out);

static void resample(const Work *work, Across *across, Down *down)
{
    const uint8_t *corner = work->picture + (work->top * work->width + work->left) * work->depth;
    size_t step = work->width * work->depth, span = work->span * work->depth, values = work->columns * 3;
    if (work->down_first) {
        for (size_t y = 0; y < work->rows; y++) {
            down(work, y, corner, step, span, work->line);
            across(work, work->line, work->out + y * values);
        }
        return;
    }
    for (size_t y = 0; y < work->height; y++) {
        const uint8_t *row = corner + y * step;
        if ((size_t)(work->end - row) < work->read) row = memcpy(work->line, row, span);
        across(work, row, work->middle + y * values);
    }
    for (size_t y = 0; y < work->rows; y++) down(work, y, work->middle, values, values, work->out + y * values);
}

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
    Work work = {.picture = picture, .end = picture + depth * from.height * from.width, .depth = depth, .out = out,
                 .width = from.width, .rows = window.height, .columns = window.width};
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
    /* In values. The weights of an axis are at most 4 * from + 8 * to, whatever the window is. */
    size_t span = work.span * depth, values = work.columns * 3, narrower = values;
    size_t middle = work.down_first ? 0 : work.height * values, widest = span > values ? span : values;
    if (work.down_first && span < values) narrower = span;
    work.vertical.stride = whole_groups(down_taps);
    work.horizontal.stride = whole_groups(across_taps);
    work.read = span + work.horizontal.stride * depth + 16;
    size_t ints = work.rows * (work.vertical.stride + 2) + work.columns * (work.horizontal.stride + 2) + widest;
    size_t taps = down_taps > across_taps ? down_taps : across_taps;
    char *room = malloc(taps * sizeof(double) + ints * sizeof(int32_t) + middle + work.read);
    if (room == NULL) return 0;
    char *at = room;
    double *exact = carve(&at, taps, sizeof(double));
    work.vertical.weights = carve(&at, work.rows * work.vertical.stride, sizeof(int32_t));
    work.vertical.first = carve(&at, work.rows, sizeof(int32_t));
    work.vertical.count = carve(&at, work.rows, sizeof(int32_t));
    work.horizontal.weights = carve(&at, work.columns * work.horizontal.stride, sizeof(int32_t));
    work.horizontal.first = carve(&at, work.columns, sizeof(int32_t));
    work.horizontal.count = carve(&at, work.columns, sizeof(int32_t));
    work.sums = carve(&at, widest, sizeof(int32_t));
    work.middle = carve(&at, middle, 1);
    work.line = carve(&at, work.read, 1);

    weigh(&work.vertical, from.height, to.height, top, window.height, exact);
    weigh(&work.horizontal, from.width, to.width, left, window.width, exact);
    memset(work.line + span, 0, work.read - span);
    if (avx2 && narrower >= BLOCK) {
        split(&work.vertical, work.rows);
        split(&work.horizontal, work.columns);
        resample(&work, across_avx2, down_avx2);
    } else {
        resample(&work, across_anywhere, down_anywhere);
    }
    free(room);
    return 1;
}

#include "raster.h"
#include "run_lengths.h"
#include "bilinear.h"

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

/* A buffer (height, width, depth) of bytes, the last axis contiguous. Returns 0 and an exception where it is another. */
static int raster_of(const Py_buffer *buffer, Raster *raster)
{
    if (buffer->ndim != 3 || buffer->itemsize != 1 || (buffer->shape[2] != 1 && buffer->strides[2] != 1)
        || (buffer->shape[2] != 3 && buffer->shape[2] != 4)) {
        PyErr_SetString(PyExc_ValueError, "a raster must be uint8 (height, width, 3 or 4), with adjacent channels");
        return 0;
    }
    if (buffer->shape[0] < 1 || buffer->shape[1] < 1 || buffer->shape[0] > MOST || buffer->shape[1] > MOST) {
        PyErr_Format(PyExc_ValueError, "each side must have 1 to %d pixels", MOST);
        return 0;
    }
    *raster = (Raster){buffer->buf, buffer->strides[0], buffer->strides[1], (size_t)buffer->shape[0],
                       (size_t)buffer->shape[1], (size_t)buffer->shape[2]};
    return 1;
}

/* Whether the pixels of a row are side by side, and rows do not overlap. */
static int has_rows(const Raster *raster)
{
    ptrdiff_t bytes = (ptrdiff_t)(raster->width * raster->depth);
    return (raster->width == 1 || raster->column == (ptrdiff_t)raster->depth)
           && (raster->height == 1 || raster->row >= bytes);
}

/* Both arguments, a raster to read and one to write, of three bytes a pixel; 0 and an exception where they are others. */
static int both_rasters(PyObject *args, Py_buffer buffers[2], Raster *from, Raster *to)
{
    PyObject *source, *out;
    if (!PyArg_ParseTuple(args, "OO", &source, &out)) return 0;
    if (PyObject_GetBuffer(source, &buffers[0], PyBUF_STRIDES) != 0) return 0;
    if (PyObject_GetBuffer(out, &buffers[1], PyBUF_STRIDES | PyBUF_WRITABLE) != 0) return 0;
    if (!raster_of(&buffers[0], from) || !raster_of(&buffers[1], to)) return 0;
    if (to->depth == 3) return 1;
    PyErr_SetString(PyExc_ValueError, "the output must have three bytes a pixel");
    return 0;
}

static PyObject *resize_bilinear(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buffers[2] = {{0}, {0}};
    Raster from, to;
    int done = 0;
    if (!both_rasters(args, buffers, &from, &to)) {
    } else if (!has_rows(&from) || !has_rows(&to)) {
        PyErr_SetString(PyExc_ValueError, "rows must have adjacent pixels, and follow each other");
    } else {
        Py_BEGIN_ALLOW_THREADS
        done = bilinear(&from, &to);
        Py_END_ALLOW_THREADS
        if (!done) PyErr_NoMemory();
    }
    PyBuffer_Release(&buffers[0]);
    PyBuffer_Release(&buffers[1]);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

static PyObject *copy(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buffers[2] = {{0}, {0}};
    Raster from, to;
    int done = 0;
    if (!both_rasters(args, buffers, &from, &to)) {
    } else if (!has_rows(&from)) {
        PyErr_SetString(PyExc_ValueError, "the pixels of a row must be adjacent");
    } else if (from.height != to.height || from.width != to.width) {
        PyErr_SetString(PyExc_ValueError, "both rasters must have the same size");
    } else {
        Py_BEGIN_ALLOW_THREADS
        copy_pixels(&from, &to, avx2);
        Py_END_ALLOW_THREADS
        done = 1;
    }
    PyBuffer_Release(&buffers[0]);
    PyBuffer_Release(&buffers[1]);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

static PyObject *run_lengths(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer data, out;
    Py_ssize_t width;
    int wide, done = 0;
    if (!PyArg_ParseTuple(args, "y*pnw*", &data, &wide, &width, &out)) return NULL;
    if (width < 1) {
        PyErr_SetString(PyExc_ValueError, "a row must have a pixel");
    } else {
        Py_BEGIN_ALLOW_THREADS
        done = decode_run_lengths(data.buf, (size_t)data.len, wide, (size_t)width, out.buf, (size_t)out.len);
        Py_END_ALLOW_THREADS
        if (!done) PyErr_SetString(PyExc_ValueError, "a run exceeds its row, or the data end before the picture does");
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"window", window, METH_VARARGS, NULL},
                                {"bilinear", resize_bilinear, METH_VARARGS, NULL},
                                {"copy", copy, METH_VARARGS, NULL},
                                {"run_lengths", run_lengths, METH_VARARGS, NULL},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_resample", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__resample(void)
{
    avx2 = has_avx2();
    return PyModuleDef_Init(&module);
}
