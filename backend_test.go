package llmrate_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// gateBackend is the least a backend can be: one counter for the fleet, and a note of every call.
type gateBackend struct {
	mu      sync.Mutex
	free    int64
	held    int64
	wake    func(model string)
	joined  llmrate.JoinParams
	settled []llmrate.SettleParams
	left    int
	failing error
}

func (b *gateBackend) Join(_ context.Context, p llmrate.JoinParams) (llmrate.Member, error) {
	b.joined, b.wake = p, p.Wake
	return b, nil
}

func (b *gateBackend) Acquire(context.Context, llmrate.AcquireParams) (llmrate.AcquireResult, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failing != nil {
		return llmrate.AcquireResult{}, b.failing
	}
	if b.free == 0 {
		return llmrate.AcquireResult{RetryAfter: time.Hour}, nil
	}
	b.free--
	b.held++
	return llmrate.AcquireResult{Granted: true, Grant: "window 7"}, nil
}

func (b *gateBackend) Settle(p llmrate.SettleParams) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held--
	b.settled = append(b.settled, p)
}

func (b *gateBackend) Leave(context.Context) error { b.left++; return nil }

func (b *gateBackend) allow(n int64) {
	b.mu.Lock()
	b.free += n
	b.mu.Unlock()
	b.wake("m")
}

func fleetLimiter(t *testing.T, b llmrate.Backend) *llmrate.Limiter[string] {
	l, err := llmrate.New(t.Context(), llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: "m", Limits: llmrate.Limits{RequestsPerMinute: 100, TokensPerMinute: 1000}}},
		JobTypes: map[string]llmrate.JobType[string]{"chat": {EstimatedTokens: 10, MaxWait: map[string]time.Duration{"m": 10 * time.Hour}}},
		Backend:  b,
	})
	require.NoError(t, err)
	return l
}

func TestBackendRefusalGivesLocalReservationsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &gateBackend{}
		l := fleetLimiter(t, b)
		var started atomic.Int64
		for range 5 {
			go func() {
				_, err := l.Run(t.Context(), "chat", func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error) {
					started.Add(1)
					return llmrate.Usage{Requests: 1, InputTokens: 4}, nil
				})
				require.NoError(t, err)
			}()
			synctest.Wait()
		}
		m := l.Stats().Models["m"]
		require.EqualValues(t, 0, m.TokensPerMinute.Used, "a job that the fleet refuses holds nothing here")
		require.EqualValues(t, 5, m.Concurrency.Waiting)

		for n := range 5 {
			b.allow(1)
			synctest.Wait()
			require.EqualValues(t, n+1, started.Load(), "a wake-up admits what fits, no more")
		}
		require.Zero(t, b.held)
		for _, s := range b.settled {
			require.Equal(t, llmrate.SettleParams{
				Model: "m", Grant: "window 7", Known: true,
				Need: llmrate.Amounts{Requests: 1, Tokens: 10, InputTokens: 10, OutputTokens: 10},
				Used: llmrate.Amounts{Requests: 1, Tokens: 4, InputTokens: 4},
			}, s)
		}
		require.NoError(t, l.Close(context.Background()))
		require.NoError(t, l.Close(context.Background()))
		require.Equal(t, 1, b.left, "a limiter leaves once")
	})
}

func TestBackendIsAskedAgainAfterRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &gateBackend{}
		l := fleetLimiter(t, b)
		start := time.Now()
		done := make(chan time.Duration, 1)
		go func() {
			r, err := l.Acquire(t.Context(), "chat")
			require.NoError(t, err)
			r.Release()
			done <- time.Since(start)
		}()
		synctest.Wait()
		b.mu.Lock()
		b.free = 1 // and the wake-up is lost
		b.mu.Unlock()
		require.Equal(t, time.Hour, <-done)
	})
}

func TestBackendRefusalOfAJobThatMayNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := fleetLimiter(t, &gateBackend{})
		_, err := l.TryAcquire(t.Context(), "chat")
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		short, ok := errors.AsType[*llmrate.CapacityError](err)
		require.True(t, ok)
		require.Equal(t, llmrate.ReasonBackend, short.Models[0].Reason)
		require.Equal(t, time.Now().Add(time.Hour), short.Models[0].RetryAt)
		require.Zero(t, l.Stats().Models["m"].TokensPerMinute.Used)
	})
}

func TestBackendFailureIsTheJobsErrorAndHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("down")
		l := fleetLimiter(t, &gateBackend{failing: down})
		_, err := l.Acquire(t.Context(), "chat")
		require.ErrorIs(t, err, down)
		require.Zero(t, l.Stats().Models["m"].TokensPerMinute.Used)
		require.NoError(t, l.Close(t.Context()))
	})
}

func TestBackendRefusedWaiterLeavesOnCancelTimeoutAndClose(t *testing.T) {
	for name, leave := range map[string]func(l *llmrate.Limiter[string], cancel func()){
		"cancel":  func(_ *llmrate.Limiter[string], cancel func()) { cancel() },
		"timeout": func(*llmrate.Limiter[string], func()) { time.Sleep(time.Minute) },
		"close":   func(l *llmrate.Limiter[string], _ func()) { _ = l.Close(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &gateBackend{}
				l := fleetLimiter(t, b)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() {
					_, err := l.Acquire(ctx, "chat", llmrate.WithMaxWait(time.Minute))
					done <- err
				}()
				synctest.Wait()
				leave(l, cancel)
				require.Error(t, <-done)
				require.Zero(t, l.Stats().Models["m"].Concurrency.Waiting)
				require.Zero(t, l.Stats().Models["m"].TokensPerMinute.Used)
				require.Zero(t, b.held)
			})
		})
	}
}

// A backend with a script of its own for Acquire.
type scriptedBackend struct {
	gateBackend
	acquire func(call int) (llmrate.AcquireResult, error)
	calls   int
	onEnd   func()
}

func (b *scriptedBackend) Join(context.Context, llmrate.JoinParams) (llmrate.Member, error) {
	return b, nil
}

func (b *scriptedBackend) Acquire(context.Context, llmrate.AcquireParams) (llmrate.AcquireResult, error) {
	b.mu.Lock()
	b.calls++
	call := b.calls
	b.mu.Unlock()
	return b.acquire(call)
}

func (b *scriptedBackend) Settle(llmrate.SettleParams) {
	if b.onEnd != nil {
		b.onEnd()
	}
}

// A job that the backend refuses goes back in front of a head to whom a bucket's refill is owed. That one is no head any
// more, and may not keep the refill from the job in front of it.
func TestBackendRefusalInFrontOfAStarvedHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &scriptedBackend{acquire: func(call int) (llmrate.AcquireResult, error) {
			return llmrate.AcquireResult{Granted: call != 2, RetryAfter: time.Second}, nil
		}}
		l, err := llmrate.New(t.Context(), llmrate.Config[string]{
			Models: []llmrate.ModelConfig[string]{{
				ID: "m", Limits: llmrate.Limits{TokensPerMinute: 100, Refill: llmrate.Continuous, MaxConcurrent: 1},
			}},
			JobTypes: map[string]llmrate.JobType[string]{"job": {EstimatedTokens: 100}},
			Backend:  b,
		})
		require.NoError(t, err)
		hold, err := l.Acquire(t.Context(), "job")
		require.NoError(t, err)
		start := time.Now()
		var wg sync.WaitGroup
		var latest atomic.Int64
		for range 2 {
			wg.Go(func() {
				r, err := l.Acquire(t.Context(), "job", llmrate.WithMaxWait(10*time.Minute))
				require.NoError(t, err)
				latest.Store(int64(time.Since(start)))
				require.NoError(t, r.Settle(llmrate.Usage{}))
			})
		}
		time.Sleep(2 * time.Minute)
		hold.Release()
		wg.Wait()
		require.LessOrEqual(t, time.Duration(latest.Load()), 2*time.Minute+10*time.Second)
		require.NoError(t, l.Close(t.Context()))
	})
}

func TestBackendThatAlwaysSaysNowEndsWithMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := fleetLimiter(t, &scriptedBackend{acquire: func(int) (llmrate.AcquireResult, error) { return llmrate.AcquireResult{}, nil }})
		start := time.Now()
		_, err := l.Acquire(t.Context(), "chat", llmrate.WithMaxWait(time.Second))
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		require.Equal(t, time.Second, time.Since(start).Round(10*time.Millisecond))
		require.NoError(t, l.Close(t.Context()))
	})
}

func TestBackendPanicHoldsNothing(t *testing.T) {
	l := fleetLimiter(t, &scriptedBackend{acquire: func(int) (llmrate.AcquireResult, error) { panic("bug") }})
	require.PanicsWithValue(t, "bug", func() { _, _ = l.Acquire(t.Context(), "chat") })
	require.Zero(t, l.Stats().Models["m"].Concurrency.Active)
	require.Zero(t, l.Stats().Models["m"].TokensPerMinute.Used)
	require.NoError(t, l.Close(t.Context()))
}

func TestCloseWaitsUntilTheBackendIsToldOfTheLastJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := false
		b := &scriptedBackend{acquire: func(int) (llmrate.AcquireResult, error) { return llmrate.AcquireResult{Granted: true}, nil }}
		b.onEnd = func() {
			time.Sleep(time.Second)
			told = true
		}
		l := fleetLimiter(t, b)
		r, err := l.Acquire(t.Context(), "chat")
		require.NoError(t, err)
		go r.Release()
		require.NoError(t, l.Close(t.Context()))
		require.True(t, told)
		require.Equal(t, 1, b.left)
	})
}

func TestBackendLearnsTheLimitsAsAVector(t *testing.T) {
	b := &gateBackend{}
	fleetLimiter(t, b)
	require.Equal(t, []llmrate.ModelLimits{{Model: "m", Dimensions: []llmrate.Dimension{
		{Resource: llmrate.Requests, Per: time.Minute, Max: 100},
		{Resource: llmrate.Tokens, Per: time.Minute, Max: 1000},
	}}}, b.joined.Models)
	require.NotEmpty(t, b.joined.InstanceID)
}
