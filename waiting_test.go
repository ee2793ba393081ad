package llmrate_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// SCENARIOS table 6: waiting.

const waitingMessage = "all models exhausted: no capacity available within max wait"

// waitingModels are models on which one job may run at a time.
func waitingModels(ids ...string) (models []modelConfig) {
	for _, id := range ids {
		models = append(models, modelConfig{ID: id, Limits: limits{MaxConcurrent: 1}})
	}
	return models
}

// waitingFull is a limiter whose models, except those named free, each run a job until the test ends.
func waitingFull(t *testing.T, typ jobType, models []string, free ...string) *limiter {
	t.Helper()
	l := newLimiter(t, config{Models: waitingModels(models...), JobTypes: jobTypes{"job": typ}})
models:
	for _, m := range models {
		for _, f := range free {
			if m == f {
				continue models
			}
		}
		acquire(t, l, "job", llmrate.WithModels(m))
	}
	return l
}

func TestWaiting6_1DefaultMaxWait(t *testing.T) {
	for _, c := range []struct{ arrival, wait time.Duration }{
		{0, 65 * time.Second},
		{30 * time.Second, 35 * time.Second},
		{55 * time.Second, 10 * time.Second},
		{59 * time.Second, 6 * time.Second},
		{59*time.Second + 999*time.Millisecond, 5*time.Second + time.Millisecond},
		{7*minute + 20*time.Second, 45 * time.Second},
		{day - time.Second, 6 * time.Second},
	} {
		scenario(t, c.arrival.String(), func(t *testing.T) {
			rec := &recorder{}
			l := newLimiter(t, config{Models: waitingModels("a"), JobTypes: jobTypes{"job": {}}, OnEvent: rec.record})
			acquire(t, l, "job")
			sleepUntil(c.arrival)
			res, err := l.Run(t.Context(), "job", job(0, usage{}))
			require.ErrorIs(t, err, llmrate.ErrNoCapacity)
			require.Equal(t, c.arrival+c.wait, elapsed())
			require.Equal(t, c.wait, res.Waited)
			queued := eventsOf[llmrate.QueuedEvent](rec)
			require.Len(t, queued, 1)
			require.Equal(t, c.wait, queued[0].MaxWait)
		})
	}
}

// The default is counted anew on each model, from the moment the job queues there.
func TestWaiting6_1DefaultMaxWaitOnEachModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := waitingFull(t, jobType{}, []string{"a", "b"})
		sleepUntil(30 * time.Second)
		_, err := l.Run(t.Context(), "job", job(0, usage{}))
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		require.Equal(t, 2*minute+5*time.Second, elapsed(), "to 1:05 on the first, then to 2:05 on the second")
	})
}

func TestWaiting6_2NoWaitNoOtherModel(t *testing.T) {
	for name, c := range map[string]struct {
		limits   limits
		resource string
	}{
		"tokens":        {limits{TokensPerMinute: 10_000}, "tokens"},
		"tokens a day":  {limits{TokensPerDay: 10_000}, "tokens"},
		"requests":      {limits{RequestsPerMinute: 1}, "requests"},
		"input tokens":  {limits{InputTokensPerMinute: 10_000}, "input_tokens"},
		"output tokens": {limits{OutputTokensPerMinute: 10_000}, "output_tokens"},
		"concurrency":   {limits{MaxConcurrent: 1}, "concurrency"},
		"memory":        {limits{}, "memory"},
		"custom":        {limits{Custom: []llmrate.CustomLimit{{Resource: llmrate.Requests, Per: 10 * time.Second, Max: 1}}}, "requests"},
		"continuous":    {limits{TokensPerMinute: 10_000, Refill: llmrate.Continuous}, "tokens"},
	} {
		scenario(t, name, func(t *testing.T) {
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "a", Limits: c.limits}},
				JobTypes: jobTypes{"job": {EstimatedTokens: 10_000, EstimatedMemory: mib, MaxWait: maxWait{"a": 0}}},
				Memory:   llmrate.MemoryConfig{Limit: 1 * mib, Share: 1},
			})
			acquire(t, l, "job")
			before := l.Stats()
			res, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
				t.Error("must not run")
				return usage{}, nil
			})
			require.ErrorIs(t, err, llmrate.ErrNoCapacity)
			require.NotErrorIs(t, err, llmrate.ErrTooLarge)
			require.ErrorContains(t, err, waitingMessage)
			require.Zero(t, elapsed())
			require.Empty(t, res.Attempts)
			capacity, ok := errors.AsType[*llmrate.CapacityError](err)
			require.True(t, ok)
			require.Equal(t, "job", capacity.JobType)
			require.Len(t, capacity.Models, 1)
			if name != "memory" && c.resource != "concurrency" { // what only a job's end can free has no time
				require.False(t, capacity.RetryAt.IsZero())
				require.True(t, capacity.RetryAt.After(time.Now()))
			}
			_, err = l.Acquire(t.Context(), "job")
			require.ErrorIs(t, err, llmrate.ErrNoCapacity)
			requireFull(t, l, "job")
			require.Zero(t, elapsed())
			require.Equal(t, before, l.Stats(), "a refusal leaves no trace")
		})
	}
}

// The error says what each model lacked, in the order in which they were tried.
func TestWaiting6_2ErrorNamesWhatWasShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{
				{ID: "z", Limits: limits{TokensPerMinute: 15_000}},
				{ID: "a", Limits: limits{MaxConcurrent: 1}},
				{ID: "tiny", Limits: limits{TokensPerMinute: 9_999}},
			},
			JobTypes: jobTypes{"job": {EstimatedTokens: 10_000}},
		})
		acquire(t, l, "job", llmrate.WithModels("z"))
		acquire(t, l, "job", llmrate.WithModels("a"))
		_, err := l.Run(t.Context(), "job", job(0, usage{}), llmrate.WithMaxWait(2*time.Second))
		require.Equal(t, 4*time.Second, elapsed())
		capacity, ok := errors.AsType[*llmrate.CapacityError](err)
		require.True(t, ok)
		require.Len(t, capacity.Models, 3)
		z, a, tiny := capacity.Models[0], capacity.Models[1], capacity.Models[2]
		require.Equal(t, llmrate.Shortage{
			Model: "z", Reason: llmrate.ReasonLimit, Resource: "tokens", Per: minute, Needed: 10_000, Free: 5_000, Limit: 15_000,
			Waited: 2 * time.Second, RetryAt: z.RetryAt,
		}, z)
		require.True(t, z.RetryAt.Equal(midnight.Add(minute)))
		require.Equal(t, llmrate.Shortage{
			Model: "a", Reason: llmrate.ReasonLimit, Resource: "concurrency", Needed: 1, Free: 0, Limit: 1, Waited: 2 * time.Second,
		}, a)
		require.Equal(t, llmrate.Shortage{
			Model: "tiny", Reason: llmrate.ReasonTooLarge, Resource: "tokens", Per: minute, Needed: 10_000, Limit: 9_999,
		}, tiny)
		require.True(t, capacity.RetryAt.Equal(midnight.Add(minute)))
		for _, text := range []string{waitingMessage, `"job"`, "z", "tokens per minute", "10000", "5000 of 15000", "concurrency", "9999", "2s"} {
			require.ErrorContains(t, err, text)
		}
	})
}

func TestWaiting6_3NoWaitOtherModelFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := waitingFull(t, jobType{MaxWait: maxWait{"a": 0}}, []string{"a", "b"}, "b")
		res, err := l.Run(t.Context(), "job", job(0, usage{}))
		require.NoError(t, err)
		require.Equal(t, "b", res.Model)
		require.Zero(t, res.Waited)
		require.Zero(t, elapsed())
	})
}

func TestWaiting6_4MovesOnAfterMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := waitingFull(t, jobType{MaxWait: maxWait{"a": 5 * time.Second}}, []string{"a", "b"}, "b")
		sleepUntil(2 * time.Second)
		res, err := l.Run(t.Context(), "job", job(0, usage{}))
		require.NoError(t, err)
		require.Equal(t, "b", res.Model)
		require.InDelta(t, 7*time.Second, elapsed(), float64(50*time.Millisecond))
		require.InDelta(t, 5*time.Second, res.Waited, float64(50*time.Millisecond))
	})
}

func TestWaiting6_5WaitsOnEachModelInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := waitingFull(t, jobType{MaxWait: maxWait{"a": time.Second, "b": 10 * time.Second}}, []string{"a", "b", "c"}, "c")
		res, err := l.Run(t.Context(), "job", job(0, usage{}))
		require.NoError(t, err)
		require.Equal(t, "c", res.Model)
		require.Equal(t, 11*time.Second, elapsed())
		require.Equal(t, 11*time.Second, res.Waited)
	})
	scenario(t, "WithMaxWait is per model too", func(t *testing.T) {
		l := waitingFull(t, jobType{MaxWait: maxWait{"a": time.Second}}, []string{"a", "b", "c"}, "c")
		res, err := l.Run(t.Context(), "job", job(0, usage{}), llmrate.WithMaxWait(4*time.Second))
		require.NoError(t, err)
		require.Equal(t, "c", res.Model)
		require.Equal(t, 8*time.Second, elapsed())
	})
}

func TestWaiting6_6AllMoveAtTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   append(waitingModels("a"), modelConfig{ID: "b"}),
			JobTypes: jobTypes{"job": {MaxWait: maxWait{"a": 5 * time.Second}}},
		})
		acquire(t, l, "job")
		all := runJobs(t, l, "job", 10, job(time.Second, usage{}))
		require.EqualValues(t, 10, l.Stats().Models["a"].Concurrency.Waiting)
		require.Equal(t, 10, l.Stats().JobTypes["job"].Waiting)
		sleepUntil(5*time.Second - 1)
		require.Zero(t, all.on("b"))
		sleepUntil(5 * time.Second)
		require.Equal(t, 10, all.on("b"))
		require.Zero(t, l.Stats().Models["a"].Concurrency.Waiting)
		all.wait()
		require.Len(t, all.ends(), 10)
		require.Equal(t, repeat(10, 5*time.Second), all.times("job"))
	})
}

func TestWaiting6_7CapacityFreesDuringTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		l := newLimiter(t, config{
			Models: waitingModels("a", "b"), JobTypes: jobTypes{"job": {MaxWait: maxWait{"a": 10 * time.Second}}}, OnEvent: rec.record,
		})
		held := acquire(t, l, "job")
		first := runJobs(t, l, "job", 1, job(20*time.Second, usage{}))
		second := runJobs(t, l, "job", 1, job(time.Second, usage{}))
		sleepUntil(3 * time.Second)
		require.NoError(t, held.Settle(usage{}))
		require.Equal(t, []begun{{0, "job", "a", 3 * time.Second}}, first.begins(""))
		require.Equal(t, []llmrate.EscalatedEvent(nil), eventsOf[llmrate.EscalatedEvent](rec))
		require.Empty(t, second.begins(""))
		second.wait() // moves on, as nobody made room for it
		require.Equal(t, []begun{{0, "job", "b", 10 * time.Second}}, second.begins(""))
		first.wait()
		require.Equal(t, 3*time.Second, first.ends()[0].result.Waited)
	})
}

func TestWaiting6_8FirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a", Limits: limits{MaxConcurrent: 10}}}, JobTypes: jobTypes{"job": {}},
		})
		all := &jobs{t: t, l: l}
		for i := range 13 { // the first ends after 1 s, the second after 2 s and so on
			all.run("job", 1, job(time.Duration(i+1)*time.Second, usage{}))
		}
		require.Len(t, all.begins(""), 10)
		all.wait()
		begins := all.begins("")
		require.Equal(t, []begun{
			{10, "job", "a", 1 * time.Second}, {11, "job", "a", 2 * time.Second}, {12, "job", "a", 3 * time.Second},
		}, begins[10:])
	})
	scenario(t, "strictly, also if the one behind would fit", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a", Limits: limits{TokensPerMinute: 10_000}}}, JobTypes: jobTypes{"job": {EstimatedTokens: 6_000}},
		})
		acquire(t, l, "job")
		all := runJobs(t, l, "job", 1, job(0, tokens(6_000)))
		small := llmrate.WithEstimate(tokens(1_000))
		all.run("job", 1, job(0, tokens(1_000)), small)
		requireFull(t, l, "job", small)
		require.Empty(t, all.begins(""))
		all.wait()
		require.Equal(t, repeat(2, minute), all.times("job"))
	})
}

func TestWaiting6_9ContextCancelledWhileWaiting(t *testing.T) {
	cause := errors.New("the user went away")
	calls := map[string]func(context.Context, *limiter) error{
		"Run": func(ctx context.Context, l *limiter) error {
			_, err := l.Run(ctx, "job", job(0, usage{}))
			return err
		},
		"Do": func(ctx context.Context, l *limiter) error {
			_, _, err := llmrate.Do(ctx, l, "job", func(context.Context, llmrate.Attempt[string]) (int, usage, error) {
				return 0, usage{}, nil
			})
			return err
		},
		"Acquire": func(ctx context.Context, l *limiter) error {
			_, err := l.Acquire(ctx, "job")
			return err
		},
	}
	for name, call := range calls {
		scenario(t, name, func(t *testing.T) {
			l := waitingFull(t, jobType{}, []string{"a", "b"}, "b")
			waiters := runJobs(t, l, "job", 2, job(0, usage{}), llmrate.WithModels("a"))
			ctx, cancel := context.WithCancelCause(t.Context())
			done := make(chan error, 1)
			go func() { done <- call(ctx, l) }()
			sleepUntil(3 * time.Second)
			require.EqualValues(t, 3, l.Stats().Models["a"].Concurrency.Waiting)
			cancel(cause)
			require.ErrorIs(t, <-done, cause)
			require.Equal(t, 3*time.Second, elapsed())
			synctest.Wait()
			st := l.Stats()
			require.EqualValues(t, 2, st.Models["a"].Concurrency.Waiting)
			require.Equal(t, 2, st.Models["a"].JobTypes["job"].Waiting)
			require.Equal(t, 2, st.JobTypes["job"].Waiting)
			require.Zero(t, st.Models["b"].Concurrency.Active, "no model is tried for somebody who has gone")
			require.Equal(t, 2, bubbleGoroutines(t), "the other waiters' own")
			waiters.all.Wait()
		})
	}
	scenario(t, "without a cause of its own", func(t *testing.T) {
		l := waitingFull(t, jobType{}, []string{"a"})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		res, err := l.Run(ctx, "job", job(0, usage{}))
		require.Equal(t, context.Canceled, err)
		require.NotErrorIs(t, err, llmrate.ErrNoCapacity)
		require.Equal(t, time.Second, res.Waited, "the result is filled in as far as possible")
		require.Empty(t, res.Attempts)
	})
}

func TestWaiting6_10LargeHeadDoesNotBlockOtherTypes(t *testing.T) {
	scenario(t, "tokens", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a", Limits: limits{TokensPerMinute: 10_000}}},
			JobTypes: jobTypes{
				"large": {EstimatedTokens: 6_000, Ratio: 0.6, FixedRatio: true},
				"small": {EstimatedTokens: 1_000, Ratio: 0.4, FixedRatio: true},
			},
		})
		acquire(t, l, "large")
		large := runJobs(t, l, "large", 1, job(0, tokens(6_000)))
		small := runJobs(t, l, "small", 5, job(0, tokens(1_000)))
		require.Equal(t, repeat(4, 0), small.times("small"))
		require.Empty(t, large.begins(""))
		require.Equal(t, 1, l.Stats().Models["a"].JobTypes["large"].Waiting)
		large.wait()
		require.Equal(t, []time.Duration{minute}, large.times("large"))
		small.wait()
	})
	scenario(t, "room that the first in line cannot use", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a", Limits: limits{TokensPerMinute: 10_000}}},
			JobTypes: jobTypes{
				"large": {EstimatedTokens: 4_000, Ratio: 0.7, FixedRatio: true},
				"small": {EstimatedTokens: 1_000, Ratio: 0.3, FixedRatio: true},
			},
		})
		held := acquire(t, l, "large", llmrate.WithEstimate(tokens(9_000)))
		acquire(t, l, "small")
		large := runJobs(t, l, "large", 1, job(0, tokens(4_000)))
		small := runJobs(t, l, "small", 1, job(0, tokens(1_000)))
		sleepUntil(10 * time.Second)
		require.Empty(t, small.begins(""), "the model is full")
		require.NoError(t, held.Settle(tokens(7_000)))
		require.Equal(t, []time.Duration{10 * time.Second}, small.times(""), "2,000 have come free")
		require.Empty(t, large.begins(""))
		large.wait()
		require.Equal(t, []time.Duration{minute}, large.times(""))
	})
	scenario(t, "memory", func(t *testing.T) { // long enough for the head to be owed the next memory that comes free
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a"}},
			JobTypes: jobTypes{
				"large": {EstimatedMemory: 10 * mib, Ratio: 0.5, FixedRatio: true, MaxWait: maxWait{"a": 10 * minute}},
				"small": {EstimatedMemory: 1 * mib, Ratio: 0.5, FixedRatio: true},
			},
			Memory: llmrate.MemoryConfig{Limit: 40 * mib, Share: 1},
		})
		acquire(t, l, "large")
		acquire(t, l, "large")
		large := runJobs(t, l, "large", 1, job(0, usage{}))
		sleepUntil(5 * minute)
		require.Empty(t, large.begins(""), "its type's own jobs hold its part of the memory")
		res, err := l.Run(t.Context(), "small", job(0, usage{}))
		require.NoError(t, err)
		require.Zero(t, res.Waited, "20 MiB are free and nobody else may have them")
		large.all.Wait()
	})
	scenario(t, "memory that was full for a while", func(t *testing.T) { // as above, but then there was nothing left for anybody
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a"}},
			JobTypes: jobTypes{
				"large": {EstimatedMemory: 10 * mib, Ratio: 0.5, FixedRatio: true, MaxWait: maxWait{"a": 10 * minute}},
				"small": {EstimatedMemory: 1 * mib, Ratio: 0.5, FixedRatio: true},
			},
			Memory: llmrate.MemoryConfig{Limit: 40 * mib, Share: 1},
		})
		acquire(t, l, "large")
		acquire(t, l, "large")
		var full []*llmrate.Reservation[string]
		for range 20 {
			full = append(full, acquire(t, l, "small"))
		}
		large := runJobs(t, l, "large", 1, job(0, usage{}))
		sleepUntil(5 * minute)
		for _, r := range full {
			r.Release()
		}
		require.Empty(t, large.begins(""), "its type's own jobs hold its part of the memory")
		res, err := l.Run(t.Context(), "small", job(0, usage{}))
		require.NoError(t, err)
		require.Zero(t, res.Waited, "20 MiB are free and nobody else may have them")
		large.all.Wait()
	})
}

func TestWaiting6_11LongestMaxWait(t *testing.T) {
	for name, opts := range map[string][]llmrate.RunOption{"MaxWait": nil, "WithMaxWait": {llmrate.WithMaxWait(math.MaxInt64)}} {
		scenario(t, name, func(t *testing.T) {
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "a", Limits: limits{MaxConcurrent: 1, RequestsPerDay: 1_000}}},
				JobTypes: jobTypes{"job": {MaxWait: maxWait{"a": math.MaxInt64}}},
			})
			held := acquire(t, l, "job")
			all := runJobs(t, l, "job", 3, job(time.Second, usage{}), opts...)
			sleepUntil(400 * day)
			require.EqualValues(t, 3, l.Stats().Models["a"].Concurrency.Waiting)
			require.NoError(t, held.Settle(usage{}))
			all.wait()
			require.Equal(t, 400*day, all.ends()[0].result.Waited)
			require.Equal(t, []time.Duration{400 * day, 400*day + time.Second, 400*day + 2*time.Second}, all.times(""))
		})
	}
}

func TestWaiting6_12TenThousandWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10_000
		l := newLimiter(t, config{
			Models: waitingModels("a"), JobTypes: jobTypes{"job": {MaxWait: maxWait{"a": 10 * day}}},
		})
		held := acquire(t, l, "job")
		running, order := 0, make([]int, 0, n)
		for i := range n {
			go func() {
				_, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
					running++ // the limiter's own exclusion makes this safe, or else the race detector complains
					order = append(order, i)
					if running != 1 {
						t.Error("two at a time")
					}
					time.Sleep(time.Millisecond)
					running--
					return usage{}, nil
				})
				if err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait()
		}
		require.EqualValues(t, n, l.Stats().Models["a"].Concurrency.Waiting)
		require.NoError(t, held.Settle(usage{}))
		sleepUntil(n * time.Millisecond)
		require.Len(t, order, n)
		for i, job := range order {
			require.Equal(t, i, job)
		}
		require.Zero(t, l.Stats().Models["a"].Concurrency.Waiting)
	})
}

func TestWaiting6_13WindowResets(t *testing.T) {
	for name, c := range map[string]struct {
		limits limits
		at     time.Duration // of the arrival
		start  []time.Duration
	}{
		"minute":      {limits{TokensPerMinute: 20_000}, 10 * time.Second, []time.Duration{minute, minute, 2 * minute}},
		"requests":    {limits{RequestsPerMinute: 2}, 10 * time.Second, []time.Duration{minute, minute, 2 * minute}},
		"day":         {limits{RequestsPerDay: 2}, 10 * time.Hour, []time.Duration{day, day, 2 * day}},
		"tokens, day": {limits{TokensPerDay: 20_000}, 10 * time.Hour, []time.Duration{day, day, 2 * day}},
		"custom": {
			limits{Custom: []llmrate.CustomLimit{{Resource: llmrate.Requests, Per: 10 * time.Second, Max: 2}}},
			3 * time.Second, []time.Duration{10 * time.Second, 10 * time.Second, 20 * time.Second},
		},
		"the later of two": {
			limits{TokensPerMinute: 20_000, Custom: []llmrate.CustomLimit{{Resource: llmrate.Requests, Per: 10 * time.Second, Max: 2}}},
			3 * time.Second, []time.Duration{minute, minute, 2 * minute},
		},
		"bucket": { // 20,000 a minute: 10,000 in 30 s; empty at the arrival
			limits{TokensPerMinute: 20_000, Refill: llmrate.Continuous}, 7 * time.Second,
			[]time.Duration{37 * time.Second, 67 * time.Second, 97 * time.Second},
		},
		"bucket with a burst": {
			limits{TokensPerMinute: 40_000, Refill: llmrate.Continuous.WithBurst(30 * time.Second)}, 7 * time.Second,
			[]time.Duration{22 * time.Second, 37 * time.Second, 52 * time.Second},
		},
	} {
		scenario(t, name, func(t *testing.T) {
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "a", Limits: c.limits}},
				JobTypes: jobTypes{"job": {EstimatedTokens: 10_000, MaxWait: maxWait{"a": 10 * day}}},
			})
			sleepUntil(c.at)
			require.Equal(t, 2, fill(t, l, "job")) // and they do not end
			waiters := runJobs(t, l, "job", 3, job(0, tokens(10_000)))
			require.Empty(t, waiters.begins(""))
			sleepUntil(c.start[0] - 1)
			require.Empty(t, waiters.begins(""))
			waiters.wait()
			require.Equal(t, c.start, waiters.times(""))
		})
	}
}

func TestWaiting6_14DeadlineBeforeTheNextPossibleStart(t *testing.T) {
	full := func(t *testing.T, l *limiter, model string) { // used up, with nothing running
		t.Helper()
		require.NoError(t, acquire(t, l, "job", llmrate.WithModels(model)).Settle(tokens(10_000)))
	}
	twoModels := func(second limits) config {
		return config{
			Models:   []modelConfig{{ID: "a", Limits: limits{TokensPerMinute: 10_000}}, {ID: "b", Limits: second}},
			JobTypes: jobTypes{"job": {EstimatedTokens: 10_000}},
		}
	}
	oneModel := func() config {
		cfg := twoModels(limits{})
		cfg.Models = cfg.Models[:1]
		return cfg
	}
	within := func(t *testing.T, d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		t.Cleanup(cancel)
		return ctx
	}

	scenario(t, "fails fast", func(t *testing.T) {
		l := newLimiter(t, oneModel())
		full(t, l, "a")
		sleepUntil(20 * time.Second)
		for _, deadline := range []time.Duration{time.Second, 30 * time.Second, 40*time.Second - 1} {
			_, err := l.Run(within(t, deadline), "job", job(0, usage{}))
			require.ErrorIs(t, err, llmrate.ErrNoCapacity)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "deadline")
			require.NotErrorIs(t, err, llmrate.ErrTooLarge)
			capacity, ok := errors.AsType[*llmrate.CapacityError](err)
			require.True(t, ok)
			require.True(t, capacity.Deadline.Equal(midnight.Add(20*time.Second+deadline)))
			require.True(t, capacity.RetryAt.Equal(midnight.Add(minute)))
			require.Equal(t, 20*time.Second, elapsed())
			require.Zero(t, l.Stats().Models["a"].Concurrency.Waiting)
		}
	})
	scenario(t, "a deadline after the start", func(t *testing.T) {
		l := newLimiter(t, oneModel())
		full(t, l, "a")
		res, err := l.Run(within(t, minute+1), "job", job(0, usage{}))
		require.NoError(t, err)
		require.Equal(t, minute, res.Waited)
	})
	scenario(t, "a running job could free room", func(t *testing.T) {
		l := newLimiter(t, oneModel())
		held := acquire(t, l, "job")
		waiter := make(chan error)
		go func() {
			_, err := l.Run(within(t, 10*time.Second), "job", job(0, usage{}))
			waiter <- err
		}()
		sleepUntil(9 * time.Second)
		require.NoError(t, held.Settle(usage{}))
		require.NoError(t, <-waiter)
		require.Equal(t, 9*time.Second, elapsed())
	})
	scenario(t, "a running job could free room and does not", func(t *testing.T) {
		l := newLimiter(t, oneModel())
		acquire(t, l, "job")
		_, err := l.Run(within(t, 10*time.Second), "job", job(0, usage{}))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 10*time.Second, elapsed())
	})
	scenario(t, "concurrency", func(t *testing.T) { // only a job's end frees it, and it may come
		l := waitingFull(t, jobType{}, []string{"a"})
		_, err := l.Run(within(t, 10*time.Second), "job", job(0, usage{}))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 10*time.Second, elapsed())
	})
	scenario(t, "the next model could take it in time", func(t *testing.T) {
		l := newLimiter(t, twoModels(limits{TokensPerMinute: 10_000}))
		full(t, l, "a")
		res, err := l.Run(within(t, 10*time.Second), "job", job(0, usage{}), llmrate.WithMaxWait(5*time.Second))
		require.NoError(t, err)
		require.Equal(t, "b", res.Model)
		require.Equal(t, 5*time.Second, elapsed())
	})
	scenario(t, "a job on the next model could end in time", func(t *testing.T) {
		l := newLimiter(t, twoModels(limits{TokensPerMinute: 10_000}))
		full(t, l, "a")
		held := acquire(t, l, "job", llmrate.WithModels("b"))
		time.AfterFunc(7*time.Second, func() { _ = held.Settle(usage{}) })
		res, err := l.Run(within(t, 10*time.Second), "job", job(0, usage{}), llmrate.WithMaxWait(5*time.Second))
		require.NoError(t, err)
		require.Equal(t, "b", res.Model)
		require.Equal(t, 7*time.Second, elapsed())
	})
	scenario(t, "the wait for the first would outlast the deadline, the next is free", func(t *testing.T) {
		l := newLimiter(t, twoModels(limits{TokensPerMinute: 10_000}))
		full(t, l, "a")
		res, err := l.Run(within(t, 10*time.Second), "job", job(0, usage{}), llmrate.WithMaxWait(10*time.Second))
		require.NoError(t, err)
		require.Equal(t, "b", res.Model)
		require.Zero(t, elapsed())
	})
	scenario(t, "a cycle of adaptation after settlements elsewhere could make room in time", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a", Limits: limits{TokensPerMinute: 10_000}}, {ID: "b"}},
			JobTypes: jobTypes{
				"job": {EstimatedTokens: 5_000, Ratio: 0.5}, "other": {EstimatedTokens: 5_000, Ratio: 0.5},
			},
			Ratios: llmrate.RatioConfig{Interval: time.Hour, Settlements: 10, MaxChange: 0.5},
		})
		require.NoError(t, acquire(t, l, "job", llmrate.WithModels("a")).Settle(tokens(5_000)))
		time.AfterFunc(time.Second, func() {
			for range 10 {
				r, err := l.Acquire(t.Context(), "other", llmrate.WithModels("b"))
				if err == nil {
					_ = r.Settle(usage{})
				}
			}
		})
		_, err := l.Run(within(t, 30*time.Second), "job", job(0, usage{}), llmrate.WithModels("a"), llmrate.WithEstimate(tokens(4_000)))
		require.NoError(t, err)
		require.Equal(t, time.Second, elapsed())
	})
	scenario(t, "the next model never fits", func(t *testing.T) {
		l := newLimiter(t, twoModels(limits{TokensPerMinute: 9_999}))
		full(t, l, "a")
		_, err := l.Run(within(t, 10*time.Second), "job", job(0, usage{}), llmrate.WithMaxWait(5*time.Second))
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		require.NotErrorIs(t, err, llmrate.ErrTooLarge)
		require.Zero(t, elapsed())
	})
	scenario(t, "after default waits on two models the third is in time", func(t *testing.T) {
		cfg := config{JobTypes: jobTypes{"job": {EstimatedTokens: 10_000}}}
		for _, id := range []string{"a", "b"} {
			cfg.Models = append(cfg.Models, modelConfig{ID: id, Limits: limits{TokensPerDay: 10_000}})
		}
		cfg.Models = append(cfg.Models, modelConfig{ID: "c"})
		l := newLimiter(t, cfg)
		full(t, l, "a")
		full(t, l, "b")
		// On a until 1:05, then on b until 2:05: c is reached two seconds before the deadline.
		res, err := l.Run(within(t, 2*minute+7*time.Second), "job", job(0, usage{}))
		require.NoError(t, err)
		require.Equal(t, "c", res.Model)
		require.Equal(t, 2*minute+5*time.Second, elapsed())
	})
}

// No herd: an edge lets in exactly those who fit, in order; the others stay.
func TestWaitingWakesExactlyThoseThatFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "a", Limits: limits{RequestsPerMinute: 4}}},
			JobTypes: jobTypes{"job": {MaxWait: maxWait{"a": 10 * minute}}},
		})
		all := runJobs(t, l, "job", 14, job(0, usage{Requests: 1}))
		for edge := range 4 {
			sleepUntil(time.Duration(edge) * minute)
			require.Len(t, all.begins(""), min(4*(edge+1), 14))
			require.EqualValues(t, max(0, 10-4*edge), l.Stats().Models["a"].Concurrency.Waiting)
			for _, b := range all.begins("")[4*edge:] {
				require.Equal(t, edge, b.job/4, fmt.Sprintf("job %d", b.job))
			}
		}
		all.wait()
	})
}

// TryAcquire neither waits nor overtakes those who do.
func TestWaitingTryAcquireDoesNotOvertake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "a", Limits: limits{TokensPerMinute: 10_000}}},
			JobTypes: jobTypes{"job": {EstimatedTokens: 6_000}},
		})
		acquire(t, l, "job")
		waiter := runJobs(t, l, "job", 1, job(0, tokens(6_000)))
		_, err := l.TryAcquire(t.Context(), "job", llmrate.WithEstimate(tokens(10)), llmrate.WithMaxWait(time.Hour))
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		capacity, ok := errors.AsType[*llmrate.CapacityError](err)
		require.True(t, ok)
		require.Equal(t, llmrate.ReasonQueue, capacity.Models[0].Reason)
		require.Zero(t, elapsed())
		waiter.wait()
	})
}
