/* A gate controller's arithmetic in one call, for folded.py, which says what is computed.

   On so few numbers a library spends its time on being called. Addresses are passed as integers:
   the caller keeps what they point to alive, float32 and contiguous. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* On x86 the loader takes what the processor has the widest registers for. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

#define BLOCK 64
#define AT_ONCE 256 /* rows: a sum of many numbers is less exact than a sum of sums of a few */
#define WORTH_SHARING (1 << 16) /* values to average: with fewer, threads wait more than work */

typedef unsigned long long address;

static float *at(address where) { return (float *)(uintptr_t)where; }

/* out (count) += sum over rows of the first `count`, BLOCK or fewer, of x (rows, width). */
FOR_EVERY_PROCESSOR
static void add_rows(const float *restrict x, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t count,
                     float *restrict out) {
    float sums[BLOCK] = {0};
    if (count == BLOCK) /* a known number of sums stays in registers */
        for (Py_ssize_t r = 0; r < rows; r++, x += width)
            for (int c = 0; c < BLOCK; c++) sums[c] += x[c];
    else
        for (Py_ssize_t r = 0; r < rows; r++, x += width)
            for (Py_ssize_t c = 0; c < count; c++) sums[c] += x[c];
    for (Py_ssize_t c = 0; c < count; c++) out[c] += sums[c];
}

/* Means over the places of one image (places, channels), for channels from `first`, BLOCK of them
   or as many as there are. */
static void mean_of_block(const float *x, Py_ssize_t places, Py_ssize_t channels, Py_ssize_t first,
                          float *out) {
    Py_ssize_t count = channels - first < BLOCK ? channels - first : BLOCK;
    /* Of few channels several places are read as one row. */
    Py_ssize_t together = channels <= BLOCK ? BLOCK / channels : 1;
    Py_ssize_t rows = places / together, left = places % together;
    Py_ssize_t width = together * channels;
    float sums[BLOCK] = {0}, all[BLOCK] = {0};
    x += first;
    for (Py_ssize_t r = 0; r < rows; r += AT_ONCE)
        add_rows(x + r * width, rows - r < AT_ONCE ? rows - r : AT_ONCE, width, together * count,
                 sums);
    add_rows(x + rows * width, left, channels, count, all);
    for (Py_ssize_t c = 0; c < count; c++) {
        for (Py_ssize_t t = 0; t < together; t++) all[c] += sums[t * count + c];
        out[first + c] = all[c] / (float)places;
    }
}

/* out (batch, channels) = means over places of x (batch, places, channels). */
static void means(const float *x, Py_ssize_t batch, Py_ssize_t places, Py_ssize_t channels,
                  float *out) {
    Py_ssize_t blocks = (channels + BLOCK - 1) / BLOCK;
#if defined(_OPENMP) && !defined(__clang__) /* clang's calls are not those that PyTorch's answers */
#pragma omp parallel for if (batch * blocks > 1 && batch * places * channels >= WORTH_SHARING)
#endif
    for (Py_ssize_t i = 0; i < batch * blocks; i++) {
        Py_ssize_t image = i / blocks, first = i % blocks * BLOCK;
        mean_of_block(x + image * places * channels, places, channels, first,
                      out + image * channels);
    }
}

/* out (columns) += x (rows) times weight (rows, columns). */
FOR_EVERY_PROCESSOR
static void add_product(const float *restrict x, const float *restrict weight, Py_ssize_t rows,
                        Py_ssize_t columns, float *restrict out) {
    for (Py_ssize_t r = 0; r < rows; r++, weight += columns)
        for (Py_ssize_t c = 0; c < columns; c++) out[c] += x[r] * weight[c];
}

static float positive(float x) { return x > 0 || x != x ? x : 0; }

/* hidden (d) = relu(pooled w1 + b1) + relu(before w2); `carried` (d) is scratch. */
static void hidden_state(const float *pooled, Py_ssize_t channels, const float *w1,
                         const float *b1, const float *before, const float *w2, Py_ssize_t d,
                         float *carried, float *hidden) {
    for (Py_ssize_t i = 0; i < d; i++) {
        hidden[i] = b1 ? b1[i] : 0;
        carried[i] = 0;
    }
    add_product(pooled, w1, channels, d, hidden);
    if (before) add_product(before, w2, d, d, carried);
    for (Py_ssize_t i = 0; i < d; i++) hidden[i] = positive(hidden[i]) + positive(carried[i]);
}

static PyObject *as_list(const float *values, Py_ssize_t count) {
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *value = PyFloat_FromDouble(values[i]);
        if (!value) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, value);
    }
    return list;
}

static PyObject *decide(PyObject *module, PyObject *args) {
    address x, pooled_at, before_at, hidden_at, w1, b1, w2, w3, b3;
    Py_ssize_t batch, places, channels, d, N;
    (void)module;
    if (!PyArg_ParseTuple(args, "KKKKnn(nnnKKKKK)", &x, &pooled_at, &before_at, &hidden_at, &batch,
                          &places, &channels, &d, &N, &w1, &b1, &w2, &w3, &b3))
        return NULL;
    float *pooled = at(pooled_at), *hidden = at(hidden_at);
    const float *before = before_at ? at(before_at) : NULL;
    float *scratch = PyMem_Malloc((size_t)(d > N ? d : N) * sizeof(float));
    if (!scratch) return PyErr_NoMemory();
    if (x) means(at(x), batch, places, channels, pooled);
    PyObject *rows = PyList_New(batch);
    for (Py_ssize_t i = 0; rows && i < batch; i++) {
        hidden_state(pooled, channels, at(w1), b1 ? at(b1) : NULL, before, at(w2), d, scratch,
                     hidden);
        for (Py_ssize_t n = 0; n < N; n++) scratch[n] = at(b3)[n];
        add_product(hidden, at(w3), d, N, scratch);
        PyObject *margins = as_list(scratch, N);
        if (!margins) Py_CLEAR(rows);
        else PyList_SET_ITEM(rows, i, margins);
        pooled += channels;
        hidden += d;
        if (before) before += d;
    }
    PyMem_Free(scratch);
    return rows;
}

static PyMethodDef methods[] = {
    {"decide", decide, METH_VARARGS,
     "decide(x, pooled, before, hidden, batch, places, (channels, d, N, w1, b1, w2, w3, b3))\n\n"
     "Fill hidden (batch, d), and pooled (batch, channels) unless x is 0, and return the margins\n"
     "(batch, N) as lists. before and b1 may be 0."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_controller", "A gate controller's arithmetic.", 0, methods,
    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__controller(void) { return PyModule_Create(&definition); }
