/* The matrix products of NumPy's OpenBLAS that NumPy calls, in plain loops: CBLAS with 64-bit integers and the names of
 * OpenBLAS in NumPy's wheel. OpenBLAS has kernels for each kind of processor, 25 MB; the front-end multiplies matrices of
 * a few hundred rows at most.
 *
 * Results differ from OpenBLAS's in the order of summation alone. Matrices are row-major here: a column-major product is
 * the row-major one of the transposed factors.
 */
#include <complex.h>
#include <stdlib.h>

typedef long Int;
enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112, CONJUGATE_TRANSPOSE = 113, UPPER = 121 };

#define NAME(letter, function) scipy_cblas_##letter##function##64_

/* A vector's first number: where its step is negative, the last in memory. */
#define FIRST(x, n, step) ((x) + ((step) < 0 ? (1 - (n)) * (step) : 0))

#define CONJUGATED(value, transpose) ((transpose) == CONJUGATE_TRANSPOSE ? CONJ(value) : (value))

#define PRODUCTS(letter, Number, Scalar, VALUE)                                                                        \
    /* y = alpha * op(a) x + beta * y; op(a) is m x n, or n x m where it is transposed */                              \
    void NAME(letter, gemv)(int order, int transpose, Int m, Int n, Scalar alpha, const Number *a, Int lda,            \
                            const Number *x, Int incx, Scalar beta, Number *y, Int incy)                               \
    {                                                                                                                  \
        int rows_first = (order == ROW_MAJOR) == (transpose == NO_TRANSPOSE);                                          \
        Int outputs = transpose == NO_TRANSPOSE ? m : n, inputs = transpose == NO_TRANSPOSE ? n : m;                   \
        x = FIRST(x, inputs, incx);                                                                                    \
        y = FIRST(y, outputs, incy);                                                                                   \
        for (Int i = 0; i < outputs; i++) {                                                                            \
            Number sum = 0;                                                                                            \
            for (Int j = 0; j < inputs; j++)                                                                           \
                sum += CONJUGATED(rows_first ? a[i * lda + j] : a[j * lda + i], transpose) * x[j * incx];              \
            y[i * incy] = VALUE(alpha) * sum + (VALUE(beta) == 0 ? 0 : VALUE(beta) * y[i * incy]);                     \
        }                                                                                                              \
    }                                                                                                                  \
    /* c = alpha * op(a) op(b) + beta * c; op(a) is m x k, op(b) k x n */                                              \
    void NAME(letter, gemm)(int order, int of_a, int of_b, Int m, Int n, Int k, Scalar alpha, const Number *a,         \
                            Int lda, const Number *b, Int ldb, Scalar beta, Number *c, Int ldc)                        \
    {                                                                                                                  \
        if (order != ROW_MAJOR) {                                                                                      \
            NAME(letter, gemm)(ROW_MAJOR, of_b, of_a, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc);                   \
            return;                                                                                                    \
        }                                                                                                              \
        /* Its rows are added, so that the innermost loop goes through memory. */                                      \
        Number *plain = of_b == NO_TRANSPOSE ? NULL : malloc((k * n + 1) * sizeof(Number));                            \
        if (plain) {                                                                                                   \
            for (Int p = 0; p < k; p++)                                                                                \
                for (Int j = 0; j < n; j++) plain[p * n + j] = CONJUGATED(b[j * ldb + p], of_b);                       \
        }                                                                                                              \
        for (Int i = 0; i < m; i++) {                                                                                  \
            Number *to = c + i * ldc;                                                                                  \
            for (Int j = 0; j < n; j++) to[j] = VALUE(beta) == 0 ? 0 : VALUE(beta) * to[j];                            \
            for (Int p = 0; p < k; p++) {                                                                              \
                Number factor = CONJUGATED(of_a == NO_TRANSPOSE ? a[i * lda + p] : a[p * lda + i], of_a);              \
                factor *= VALUE(alpha);                                                                                \
                const Number *row = plain ? plain + p * n : b + p * ldb;                                               \
                if (plain || of_b == NO_TRANSPOSE)                                                                     \
                    for (Int j = 0; j < n; j++) to[j] += factor * row[j];                                              \
                else /* there was no memory */                                                                         \
                    for (Int j = 0; j < n; j++) to[j] += factor * CONJUGATED(b[j * ldb + p], of_b);                    \
            }                                                                                                          \
        }                                                                                                              \
        free(plain);                                                                                                   \
    }                                                                                                                  \
    /* The upper or lower half of c = alpha * a aT + beta * c, n x n; a is n x k, or k x n where it is transposed */   \
    void NAME(letter, syrk)(int order, int half, int transpose, Int n, Int k, Scalar alpha, const Number *a, Int lda,  \
                            Scalar beta, Number *c, Int ldc)                                                           \
    {                                                                                                                  \
        int upper = (order == ROW_MAJOR) == (half == UPPER);                                                           \
        int rows_first = (order == ROW_MAJOR) == (transpose == NO_TRANSPOSE);                                          \
        for (Int i = 0; i < n; i++)                                                                                    \
            for (Int j = upper ? i : 0; j < (upper ? n : i + 1); j++) {                                                \
                Number sum = 0;                                                                                        \
                for (Int p = 0; p < k; p++)                                                                            \
                    sum += rows_first ? a[i * lda + p] * a[j * lda + p] : a[p * lda + i] * a[p * lda + j];             \
                Number *to = c + i * ldc + j;                                                                          \
                *to = VALUE(alpha) * sum + (VALUE(beta) == 0 ? 0 : VALUE(beta) * *to);                                 \
            }                                                                                                          \
    }                                                                                                                  \
    void NAME(letter, axpy)(Int n, Scalar alpha, const Number *x, Int incx, Number *y, Int incy)                       \
    {                                                                                                                  \
        x = FIRST(x, n, incx);                                                                                         \
        y = FIRST(y, n, incy);                                                                                         \
        for (Int i = 0; i < n; i++) y[i * incy] += VALUE(alpha) * x[i * incx];                                         \
    }

#define DOT(letter, Number)                                                                                            \
    Number NAME(letter, dot)(Int n, const Number *x, Int incx, const Number *y, Int incy)                              \
    {                                                                                                                  \
        Number sum = 0;                                                                                                \
        x = FIRST(x, n, incx);                                                                                         \
        y = FIRST(y, n, incy);                                                                                         \
        for (Int i = 0; i < n; i++) sum += x[i * incx] * y[i * incy];                                                  \
        return sum;                                                                                                    \
    }

#define COMPLEX_DOT(letter, Number, function, OF_X)                                                                    \
    void NAME(letter, function)(Int n, const Number *x, Int incx, const Number *y, Int incy, Number *result)           \
    {                                                                                                                  \
        Number sum = 0;                                                                                                \
        x = FIRST(x, n, incx);                                                                                         \
        y = FIRST(y, n, incy);                                                                                         \
        for (Int i = 0; i < n; i++) sum += OF_X(x[i * incx]) * y[i * incy];                                            \
        *result = sum;                                                                                                 \
    }

#define ITSELF(x) (x)
#define TARGET(x) (*(x))

#define CONJ ITSELF
PRODUCTS(s, float, float, ITSELF)
PRODUCTS(d, double, double, ITSELF)
DOT(s, float)
DOT(d, double)
#undef CONJ
/* Complex factors are given by their addresses. */
#define CONJ conjf
PRODUCTS(c, float complex, const float complex *, TARGET)
#undef CONJ
#define CONJ conj
PRODUCTS(z, double complex, const double complex *, TARGET)
COMPLEX_DOT(c, float complex, dotu_sub, ITSELF)
COMPLEX_DOT(c, float complex, dotc_sub, conjf)
COMPLEX_DOT(z, double complex, dotu_sub, ITSELF)
COMPLEX_DOT(z, double complex, dotc_sub, conj)
