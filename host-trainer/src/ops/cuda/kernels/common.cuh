// What all kernels share. Compiled at run time and without any header, so that the driver and NVRTC are all a machine needs.
//
// A row belongs to one warp: blocks are 32 x 4 threads, threadIdx.x is the lane, threadIdx.y picks the row. Sums go over
// lanes in one fixed order and nothing is added atomically, so a kernel gives the same bits in every run. Values are f32 in
// registers whatever they are in memory.

struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float get(const float* p, long long i) {
    return p[i];
}

__device__ __forceinline__ float get(const bf16* p, long long i) {
    return __uint_as_float((unsigned int)p[i].bits << 16);
}

__device__ __forceinline__ void put(float* p, long long i, float x) {
    p[i] = x;
}

// To the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ void put(bf16* p, long long i, float x) {
    unsigned int bits = __float_as_uint(x);
    if (x != x) {
        p[i].bits = 0x7fc0;
    } else {
        p[i].bits = (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step > 0; step >>= 1) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = 16; step > 0; step >>= 1) {
        float other = __shfl_xor_sync(0xffffffffu, x, step);
        x = other > x ? other : x;
    }
    return x;
}

__device__ __forceinline__ int warp_row() {
    return blockIdx.x * blockDim.y + threadIdx.y;
}

// Every place of an elementwise kernel, once.
#define EACH(i, count)                                                                                   \
    long long i = (long long)(blockIdx.x * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;         \
    if (i >= (count)) return

#define NO_VALUE (-3.0e38f)
