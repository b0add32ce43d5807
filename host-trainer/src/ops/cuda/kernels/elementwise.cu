// SiLU, GELU in both forms, tanh, the gated SiLU, rotary positions, biases. All arrays of one call have `count` values.

__device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

__device__ __forceinline__ float gelu_inner(float x) {
    return 0.7978846f * (x + 0.044715f * x * x * x);
}

// The distribution function of the standard normal distribution.
__device__ __forceinline__ float normal(float x) {
    return 0.5f * (1.0f + erff(0.70710678f * x));
}

// Kinds: 0 SiLU, 1 GELU by tanh, 2 GELU by erf, 3 tanh.
template <typename T>
__device__ void unary_forward(const T* x, T* y, int count, int kind) {
    EACH(i, count);
    float v = get(x, i), result;
    if (kind == 0) {
        result = v * sigmoid(v);
    } else if (kind == 1) {
        result = 0.5f * v * (1.0f + tanhf(gelu_inner(v)));
    } else if (kind == 2) {
        result = v * normal(v);
    } else {
        result = tanhf(v);
    }
    put(y, i, result);
}

template <typename T>
__device__ void unary_backward(const T* x, const T* dy, T* dx, int count, int kind) {
    EACH(i, count);
    float v = get(x, i), slope;
    if (kind == 0) {
        float s = sigmoid(v);
        slope = s * (1.0f + v * (1.0f - s));
    } else if (kind == 1) {
        float t = tanhf(gelu_inner(v));
        slope = 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * 0.7978846f * (1.0f + 3.0f * 0.044715f * v * v);
    } else if (kind == 2) {
        slope = normal(v) + v * 0.39894228f * expf(-0.5f * v * v);
    } else {
        float t = tanhf(v);
        slope = 1.0f - t * t;
    }
    put(dx, i, get(dy, i) * slope);
}

// y = silu(a) * b
template <typename T>
__device__ void silu_mul_forward(const T* a, const T* b, T* y, int count) {
    EACH(i, count);
    float v = get(a, i);
    put(y, i, v * sigmoid(v) * get(b, i));
}

// da or db is null where it is not wanted.
template <typename T>
__device__ void silu_mul_backward(const T* a, const T* b, const T* dy, T* da, T* db, int count) {
    EACH(i, count);
    float v = get(a, i), d = get(dy, i), s = sigmoid(v);
    if (da != nullptr) put(da, i, d * get(b, i) * s * (1.0f + v * (1.0f - s)));
    if (db != nullptr) put(db, i, d * v * s);
}

// Rotates the pairs (2 i, 2 i + 1) of each head by direction times the row's angle i. x, y [rows, width]; cosines and sines
// [rows, half], a head has 2 half values.
template <typename T>
__device__ void rope(const T* x, const float* cosines, const float* sines, T* y, int rows, int width, int half, float direction) {
    EACH(pair, (long long)rows * (width / 2));
    long long row = pair / (width / 2);
    int angle = (int)(pair % (width / 2)) % half;
    float c = cosines[row * half + angle], s = direction * sines[row * half + angle];
    float even = get(x, 2 * pair), odd = get(x, 2 * pair + 1);
    put(y, 2 * pair, even * c - odd * s);
    put(y, 2 * pair + 1, even * s + odd * c);
}

// y[r, c] = x[r, c] + bias[c]
template <typename T>
__device__ void add_bias(const T* x, const float* bias, T* y, int rows, int width) {
    EACH(i, (long long)rows * width);
    put(y, i, get(x, i) + bias[i % width]);
}

// sum[c] = sum over r of x[r, c], a warp a column.
template <typename T>
__device__ void sum_rows(const T* x, float* sum, int rows, int width) {
    int column = warp_row();
    if (column >= width) return;
    float total = 0.0f;
    for (int r = threadIdx.x; r < rows; r += 32) total += get(x, (long long)r * width + column);
    total = warp_sum(total);
    if (threadIdx.x == 0) sum[column] = total;
}

// sum += a * mask
template <typename T>
__device__ void add_product(const T* a, const float* mask, T* sum, int count) {
    EACH(i, count);
    put(sum, i, get(sum, i) + get(a, i) * mask[i]);
}

#define ELEMENTWISE(T)                                                                                                 \
    extern "C" __global__ void unary_forward_##T(const REAL* x, REAL* y, int count, int kind) {                        \
        unary_forward(x, y, count, kind);                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void unary_backward_##T(const REAL* x, const REAL* dy, REAL* dx, int count, int kind) {      \
        unary_backward(x, dy, dx, count, kind);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void silu_mul_forward_##T(const REAL* a, const REAL* b, REAL* y, int count) {                \
        silu_mul_forward(a, b, y, count);                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void silu_mul_backward_##T(const REAL* a, const REAL* b, const REAL* dy, REAL* da, REAL* db, \
                                                     int count) {                                                      \
        silu_mul_backward(a, b, dy, da, db, count);                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void rope_##T(const REAL* x, const float* cosines, const float* sines, REAL* y, int rows,    \
                                        int width, int half, float direction) {                                        \
        rope(x, cosines, sines, y, rows, width, half, direction);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void add_bias_##T(const REAL* x, const float* bias, REAL* y, int rows, int width) {          \
        add_bias(x, bias, y, rows, width);                                                                             \
    }                                                                                                                  \
    extern "C" __global__ void add_product_##T(const REAL* a, const float* mask, REAL* sum, int count) {               \
        add_product(a, mask, sum, count);                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void sum_rows_##T(const REAL* x, float* sum, int rows, int width) {                          \
        sum_rows(x, sum, rows, width);                                                                                 \
    }

#define REAL float
ELEMENTWISE(f32)
#undef REAL
#define REAL bf16
ELEMENTWISE(bf16)
#undef REAL
