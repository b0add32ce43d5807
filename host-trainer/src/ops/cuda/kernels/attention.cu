// The parts of attention that are no matrix products. Scores are [batch, n_heads, seq, seq]; a warp has one query.

// [batch * seq, heads * size] to [batch, heads, seq, size], or back.
template <typename T>
__device__ void move_heads(const T* x, T* y, int batch, int seq, int heads, int size, int back) {
    EACH(i, (long long)batch * seq * heads * size);
    int c = (int)(i % size);
    long long rest = i / size;
    int head = (int)(rest % heads);
    rest /= heads;
    int t = (int)(rest % seq);
    long long b = rest / seq;
    long long apart = ((b * heads + head) * seq + t) * size + c;
    if (back) {
        put(y, i, get(x, apart));
    } else {
        put(y, apart, get(x, i));
    }
}

__device__ __forceinline__ int visible_keys(int row, const unsigned int* lengths, int seq, int heads, int causal) {
    int t = row % seq;
    int length = lengths == nullptr ? seq : (int)lengths[row / (seq * heads)];
    return causal && t + 1 < length ? t + 1 : length;
}

// scores = softmax(scale * scores) over the visible keys, 0 elsewhere; log_sums [batch, n_heads, seq].
template <typename T>
__device__ void softmax_forward(T* scores, float* log_sums, const unsigned int* lengths, int rows, int seq, int heads, int causal, float scale) {
    int row = warp_row();
    if (row >= rows) return;
    scores += (long long)row * seq;
    int visible = visible_keys(row, lengths, seq, heads, causal);
    float largest = NO_VALUE;
    for (int j = threadIdx.x; j < visible; j += 32) largest = fmaxf(largest, scale * get(scores, j));
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int j = threadIdx.x; j < visible; j += 32) sum += expf(scale * get(scores, j) - largest);
    sum = warp_sum(sum);
    float log_sum = largest + logf(sum);
    for (int j = threadIdx.x; j < seq; j += 32) {
        put(scores, j, j < visible ? expf(scale * get(scores, j) - largest) / sum : 0.0f);
    }
    if (threadIdx.x == 0) log_sums[row] = log_sum;
}

// scores, the products q k^T again, become the probabilities p; dp becomes scale * p * (dp - sum over keys of p dp).
template <typename T>
__device__ void softmax_backward(T* scores, T* dp, const float* log_sums, const unsigned int* lengths, int rows, int seq, int heads, int causal, float scale) {
    int row = warp_row();
    if (row >= rows) return;
    scores += (long long)row * seq;
    dp += (long long)row * seq;
    int visible = visible_keys(row, lengths, seq, heads, causal);
    float log_sum = log_sums[row];
    float delta = 0.0f;
    for (int j = threadIdx.x; j < visible; j += 32) {
        delta += expf(scale * get(scores, j) - log_sum) * get(dp, j);
    }
    delta = warp_sum(delta);
    for (int j = threadIdx.x; j < seq; j += 32) {
        float p = j < visible ? expf(scale * get(scores, j) - log_sum) : 0.0f;
        float d = j < visible ? scale * p * (get(dp, j) - delta) : 0.0f;
        put(scores, j, p);
        put(dp, j, d);
    }
}

#define ATTENTION(T)                                                                                                   \
    extern "C" __global__ void move_heads_##T(const REAL* x, REAL* y, int batch, int seq, int heads, int size,         \
                                              int back) {                                                              \
        move_heads(x, y, batch, seq, heads, size, back);                                                               \
    }                                                                                                                  \
    extern "C" __global__ void softmax_forward_##T(REAL* scores, float* log_sums, const unsigned int* lengths,         \
                                                   int rows, int seq, int heads, int causal, float scale) {            \
        softmax_forward(scores, log_sums, lengths, rows, seq, heads, causal, scale);                                   \
    }                                                                                                                  \
    extern "C" __global__ void softmax_backward_##T(REAL* scores, REAL* dp, const float* log_sums,                     \
                                                    const unsigned int* lengths, int rows, int seq, int heads,         \
                                                    int causal, float scale) {                                         \
        softmax_backward(scores, dp, log_sums, lengths, rows, seq, heads, causal, scale);                              \
    }

#define REAL float
ATTENTION(f32)
#undef REAL
#define REAL bf16
ATTENTION(bf16)
#undef REAL
