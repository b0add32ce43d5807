// AdamW over all parameters in one launch. A chunk is up to CHUNK values of one parameter and belongs to one warp.

#define CHUNK 2048

struct Parameter {
    float* values;
    const float* grad;
    // Where its moments begin.
    long long moments;
    long long count;
    // rate / (1 - beta1^t), and 1 - rate * weight_decay.
    float rate;
    float keep;
};

// Parameter, and number of the chunk in it.
struct Chunk {
    unsigned int parameter;
    unsigned int index;
};

// squares[chunk] = the sum of the squares of its gradients.
extern "C" __global__ void adamw_squares(const Parameter* parameters, const Chunk* chunks, float* squares, int n_chunks) {
    int number = warp_row();
    if (number >= n_chunks) return;
    Chunk chunk = chunks[number];
    Parameter p = parameters[chunk.parameter];
    long long start = (long long)chunk.index * CHUNK;
    long long end = start + CHUNK < p.count ? start + CHUNK : p.count;
    float sum = 0.0f;
    for (long long i = start + threadIdx.x; i < end; i += 32) sum += p.grad[i] * p.grad[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) squares[number] = sum;
}

extern "C" __global__ void adamw_update(const Parameter* parameters, const Chunk* chunks, float* m, float* v, int n_chunks, float clip, float beta1, float beta2, float root, float eps) {
    int number = warp_row();
    if (number >= n_chunks) return;
    Chunk chunk = chunks[number];
    Parameter p = parameters[chunk.parameter];
    long long start = (long long)chunk.index * CHUNK;
    long long end = start + CHUNK < p.count ? start + CHUNK : p.count;
    for (long long i = start + threadIdx.x; i < end; i += 32) {
        float grad = p.grad[i] * clip;
        long long at = p.moments + i;
        m[at] = beta1 * m[at] + (1.0f - beta1) * grad;
        v[at] = beta2 * v[at] + (1.0f - beta2) * grad * grad;
        p.values[i] = p.values[i] * p.keep - p.rate * m[at] / (sqrtf(v[at] * root) + eps);
    }
}
