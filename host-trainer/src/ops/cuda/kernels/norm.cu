// RMSNorm and LayerNorm with frozen weights. x, y, dy, dx [rows, width]; weight, bias [width], f32; bias is null for RMSNorm.

__device__ __forceinline__ float2 row_statistics(float sum, float square, int width, float eps, bool centered) {
    float mean = centered ? sum / width : 0.0f;
    return make_float2(mean, 1.0f / sqrtf(square / width + eps));
}

template <typename T>
__device__ float2 statistics(const T* x, int width, float eps, bool centered) {
    float sum = 0.0f;
    if (centered) {
        for (int c = threadIdx.x; c < width; c += 32) sum += get(x, c);
        sum = warp_sum(sum);
    }
    float mean = centered ? sum / width : 0.0f;
    float square = 0.0f;
    for (int c = threadIdx.x; c < width; c += 32) {
        float d = get(x, c) - mean;
        square += d * d;
    }
    return row_statistics(sum, warp_sum(square), width, eps, centered);
}

// y = (x - mean) * scale * weight + bias
template <typename T>
__device__ void norm_forward(const T* x, const float* weight, const float* bias, T* y, int rows, int width, float eps) {
    int row = warp_row();
    if (row >= rows) return;
    x += (long long)row * width;
    y += (long long)row * width;
    float2 s = statistics(x, width, eps, bias != nullptr);
    for (int c = threadIdx.x; c < width; c += 32) {
        float n = (get(x, c) - s.x) * s.y * weight[c];
        put(y, c, bias != nullptr ? n + bias[c] : n);
    }
}

// With g = dy * weight and n = (x - mean) * scale: dx = scale * (g - [mean of g, if centered] - n * mean of g n)
template <typename T>
__device__ void norm_backward(const T* x, const float* weight, const T* dy, T* dx, int rows, int width, float eps, int centered) {
    int row = warp_row();
    if (row >= rows) return;
    x += (long long)row * width;
    dy += (long long)row * width;
    dx += (long long)row * width;
    float2 s = statistics(x, width, eps, centered != 0);
    float sum_g = 0.0f, sum_gn = 0.0f;
    for (int c = threadIdx.x; c < width; c += 32) {
        float g = get(dy, c) * weight[c];
        sum_g += g;
        sum_gn += g * (get(x, c) - s.x);
    }
    float mean_g = centered ? warp_sum(sum_g) / width : 0.0f;
    float mean_gn = warp_sum(sum_gn) * s.y / width;
    for (int c = threadIdx.x; c < width; c += 32) {
        float n = (get(x, c) - s.x) * s.y;
        put(dx, c, s.y * (get(dy, c) * weight[c] - mean_g - n * mean_gn));
    }
}

extern "C" __global__ void norm_forward_f32(const float* x, const float* weight, const float* bias, float* y, int rows, int width, float eps) {
    norm_forward(x, weight, bias, y, rows, width, eps);
}
extern "C" __global__ void norm_forward_bf16(const bf16* x, const float* weight, const float* bias, bf16* y, int rows, int width, float eps) {
    norm_forward(x, weight, bias, y, rows, width, eps);
}
extern "C" __global__ void norm_backward_f32(const float* x, const float* weight, const float* dy, float* dx, int rows, int width, float eps, int centered) {
    norm_backward(x, weight, dy, dx, rows, width, eps, centered);
}
extern "C" __global__ void norm_backward_bf16(const bf16* x, const float* weight, const bf16* dy, bf16* dx, int rows, int width, float eps, int centered) {
    norm_backward(x, weight, dy, dx, rows, width, eps, centered);
}
