/* A gate controller's arithmetic in one call, for decision.py, which says what is computed.

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

typedef unsigned long long address;

static float *at(address where) { return (float *)(uintptr_t)where; }

/* out (channels) = mean over places of x (places, channels). */
FOR_EVERY_PROCESSOR
static void mean(const float *restrict x, Py_ssize_t places, Py_ssize_t channels,
                 float *restrict out) {
    Py_ssize_t p = 0, c;
    for (c = 0; c < channels; c++) out[c] = 0;
    for (; p + 4 <= places; p += 4, x += 4 * channels) {
        const float *second = x + channels, *third = second + channels, *fourth = third + channels;
        for (c = 0; c < channels; c++) out[c] += (x[c] + second[c]) + (third[c] + fourth[c]);
    }
    for (; p < places; p++, x += channels)
        for (c = 0; c < channels; c++) out[c] += x[c];
    for (c = 0; c < channels; c++) out[c] /= (float)places;
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
    PyObject *rows = PyList_New(batch);
    for (Py_ssize_t i = 0; rows && i < batch; i++) {
        if (x) mean(at(x) + i * places * channels, places, channels, pooled);
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
