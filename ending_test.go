package llmrate_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// SCENARIOS table 5: how a job ends decides what is charged, and everything else comes back in every case.

const (
	endingTokens   = 10_000 // estimate of every job here
	endingRequests = 3
	endingMemory   = 1 << 20
)

var errEnding = errors.New("the provider said no")

// endingLimiter has models of equal limits. Input costs 1 USD per million tokens on the first, 2 on the second and so on;
// cached tokens cost a tenth of that, output tokens ten times as much.
func endingLimiter(t *testing.T, models ...string) (*limiter, *recorder) {
	t.Helper()
	rec := &recorder{}
	cfg := config{
		JobTypes: jobTypes{
			"job": {EstimatedTokens: endingTokens, EstimatedRequests: endingRequests, EstimatedMemory: endingMemory},
		},
		Memory:  llmrate.MemoryConfig{Limit: 10 * endingMemory, Share: 1},
		OnEvent: rec.record,
	}
	for i, m := range models {
		price := float64(i + 1)
		cfg.Models = append(cfg.Models, modelConfig{
			ID: m,
			Limits: limits{
				RequestsPerMinute: 100, RequestsPerDay: 1000, TokensPerMinute: 100_000, TokensPerDay: 1_000_000, MaxConcurrent: 4,
			},
			Pricing: llmrate.Pricing{Input: price, Cached: price / 10, Output: price * 10},
		})
	}
	return newLimiter(t, cfg), rec
}

// endingCharged checks what a model's windows have been charged.
func endingCharged(t *testing.T, l *limiter, model string, tokens, requests int64) {
	t.Helper()
	m := l.Stats().Models[model]
	require.Equal(t, tokens, m.TokensPerMinute.Used, "tokens per minute of %s", model)
	require.Equal(t, tokens, m.TokensPerDay.Used, "tokens per day of %s", model)
	require.Equal(t, requests, m.RequestsPerMinute.Used, "requests per minute of %s", model)
	require.Equal(t, requests, m.RequestsPerDay.Used, "requests per day of %s", model)
}

// endingRuns checks how many jobs hold concurrency and memory, on all models together.
func endingRuns(t *testing.T, l *limiter, jobs int) {
	t.Helper()
	st := l.Stats()
	active, shares := int64(0), 0
	for _, m := range st.Models {
		active += m.Concurrency.Active
		shares += m.JobTypes["job"].InFlight
		require.Zero(t, m.Concurrency.Waiting)
	}
	require.EqualValues(t, jobs, active)
	require.Equal(t, jobs, shares)
	require.Equal(t, jobs, st.JobTypes["job"].InFlight)
	require.EqualValues(t, jobs*endingMemory, st.Memory.Used)
	require.Len(t, st.Jobs, jobs)
}

// endingHolds wraps fn: while it runs the job holds its estimate in every window, a slot and its memory.
func endingHolds(t *testing.T, l *limiter, fn jobFunc) jobFunc {
	return func(ctx context.Context, a llmrate.Attempt[string]) (usage, error) {
		endingRuns(t, l, 1)
		endingCharged(t, l, a.Model, endingTokens, endingRequests)
		time.Sleep(3 * time.Second)
		return fn(ctx, a)
	}
}

// TestEnding has the rows that end on the first model, together with what DESIGN 3.5 adds to them. Every job runs on two
// models that could both take it, for three seconds.
func TestEnding(t *testing.T) {
	used := usage{Requests: 1, InputTokens: 3_000, CachedTokens: 1_000, OutputTokens: 500}
	const usedCost = (3_000*1 + 1_000*0.1 + 500*10) / 1e6
	unasked := usage{InputTokens: 3_000, CachedTokens: 1_000, OutputTokens: 500}
	filled := unasked
	filled.Requests = endingRequests

	for _, c := range []struct {
		row              string
		used             usage
		err              error
		success          bool  // although there is an err
		tokens, requests int64 // charged at the end
		known            bool
		result           usage
		cost             float64
	}{
		{row: "5.1 usage and nil", used: used, tokens: 4_500, requests: 1, known: true, result: used, cost: usedCost},
		{row: "5.1 zero usage and nil", known: true},
		{row: "5.1 usage without requests", used: unasked, tokens: 4_500, requests: endingRequests, known: true, result: filled, cost: usedCost},
		{row: "5.1 requests alone", used: usage{Requests: 2}, tokens: 0, requests: 2, known: true, result: usage{Requests: 2}},
		{row: "5.1 more than estimated", used: usage{Requests: 5, InputTokens: 15_000}, tokens: 15_000, requests: 5, known: true,
			result: usage{Requests: 5, InputTokens: 15_000}, cost: 0.015},

		{row: "5.1 success without a usage", err: llmrate.ErrUsageUnknown, success: true, tokens: endingTokens, requests: endingRequests},
		{row: "5.1 success without a usage, whatever is beside it", used: used, err: llmrate.ErrUsageUnknown, success: true,
			tokens: endingTokens, requests: endingRequests},

		{row: "5.2 plain error", err: errEnding, tokens: endingTokens, requests: endingRequests},
		{row: "5.2 wrapped plain error", err: fmt.Errorf("calling: %w", errEnding), tokens: endingTokens, requests: endingRequests},
		{row: "5.2 plain error with usage", used: used, err: errEnding, tokens: 4_500, requests: 1, known: true, result: used, cost: usedCost},

		{row: "5.3 Reject", err: llmrate.Reject(errEnding, used), tokens: 4_500, requests: 1, known: true, result: used, cost: usedCost},
		{row: "5.3 Reject with zero usage", err: llmrate.Reject(errEnding, usage{}), known: true},
		{row: "5.3 wrapped Reject", err: fmt.Errorf("calling: %w", llmrate.Reject(errEnding, used)), tokens: 4_500, requests: 1, known: true, result: used, cost: usedCost},
		{row: "5.3 Reject counts, not what is returned beside it", used: usage{InputTokens: 9_999}, err: llmrate.Reject(errEnding, used),
			tokens: 4_500, requests: 1, known: true, result: used, cost: usedCost},
		{row: "5.3 Reject of more than estimated", err: llmrate.Reject(errEnding, usage{Requests: 1, OutputTokens: 20_000}), tokens: 20_000, requests: 1, known: true,
			result: usage{Requests: 1, OutputTokens: 20_000}, cost: 0.2},
	} {
		t.Run(c.row, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, rec := endingLimiter(t, "alpha", "beta")
				calls := 0
				res, err := l.Run(t.Context(), "job", endingHolds(t, l, func(context.Context, llmrate.Attempt[string]) (usage, error) {
					calls++
					return c.used, c.err
				}))
				require.Equal(t, 1, calls, "the next model is not tried")
				if c.err == nil || c.success {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, errEnding)
					require.Equal(t, c.err.Error(), err.Error(), "the text is the function's own")
				}
				endingCharged(t, l, "alpha", c.tokens, c.requests)
				endingCharged(t, l, "beta", 0, 0)
				endingRuns(t, l, 0)

				require.Equal(t, "alpha", res.Model)
				require.Equal(t, c.result, res.Usage)
				require.InDelta(t, c.cost, res.Cost, 1e-12)
				require.Zero(t, res.Waited)
				require.Len(t, res.Attempts, 1)
				a := res.Attempts[0]
				require.Equal(t, "alpha", a.Model)
				require.Equal(t, c.known, a.UsageKnown)
				require.Equal(t, c.result, a.Usage)
				require.InDelta(t, c.cost, a.Cost, 1e-12)
				require.Equal(t, 3*time.Second, a.Ran)
				require.Equal(t, err, a.Err)

				ended := eventsOf[llmrate.EndedEvent](rec)
				require.Len(t, ended, 1)
				require.Equal(t, c.known, ended[0].UsageKnown)
				require.Equal(t, c.result, ended[0].Usage)
				require.InDelta(t, c.cost, ended[0].Cost, 1e-12)
				require.Equal(t, err, ended[0].Err)
			})
		})
	}
}

// The error of Reject comes out as it went in; wrapped, the wrapping stays. Either way its type can be asked for.
func TestEnding5_3ErrorIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha")
		cause := &endingTypedError{status: 400}
		_, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
			return usage{}, llmrate.Reject(cause, usage{})
		})
		require.True(t, err == error(cause), "the very error")

		_, err = l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
			return usage{}, fmt.Errorf("outer: %w", llmrate.Reject(cause, usage{}))
		})
		typed, ok := errors.AsType[*endingTypedError](err)
		require.True(t, ok)
		require.Equal(t, 400, typed.status)
		require.EqualError(t, err, "outer: status 400")
		endingCharged(t, l, "alpha", 0, 0)
	})
}

type endingTypedError struct{ status int }

func (e *endingTypedError) Error() string { return fmt.Sprintf("status %d", e.status) }

// Reject and Delegate without a cause are still failures: not a success, not a nil error inside, not a panic.
func TestEnding5_3NilCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		used := usage{Requests: 1, InputTokens: 700}
		for _, refuse := range []func(error, usage) error{llmrate.Reject, llmrate.Delegate} {
			l, _ := endingLimiter(t, "alpha")
			require.Error(t, refuse(nil, used))
			require.NotEmpty(t, refuse(nil, used).Error())
			res, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
				return usage{}, refuse(nil, used)
			})
			require.Error(t, err)
			require.NotEmpty(t, err.Error())
			require.Error(t, res.Attempts[0].Err)
			endingCharged(t, l, "alpha", 700, 1)
			endingRuns(t, l, 0)
		}
	})
}

func TestEnding5_4Delegate(t *testing.T) {
	for _, wrapped := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l, rec := endingLimiter(t, "alpha", "beta", "gamma")
			first := usage{Requests: 1, InputTokens: 5_000}
			second := usage{Requests: 2, InputTokens: 1_000, OutputTokens: 100}
			var models []string
			res, err := l.Run(t.Context(), "job", endingHolds(t, l, func(_ context.Context, a llmrate.Attempt[string]) (usage, error) {
				models = append(models, a.Model)
				require.Equal(t, len(models), a.Number)
				if a.Model == "alpha" {
					err := llmrate.Delegate(errEnding, first)
					if wrapped {
						err = fmt.Errorf("calling: %w", err)
					}
					return usage{}, err
				}
				endingCharged(t, l, "alpha", 5_000, 1) // corrected before the next model runs
				return second, nil
			}))
			require.NoError(t, err)
			require.Equal(t, []string{"alpha", "beta"}, models)
			endingCharged(t, l, "alpha", 5_000, 1)
			endingCharged(t, l, "beta", 1_100, 2)
			endingCharged(t, l, "gamma", 0, 0)
			endingRuns(t, l, 0)

			require.Equal(t, "beta", res.Model)
			require.Equal(t, second, res.Usage)
			require.InDelta(t, 0.005+(1_000*2+100*20)/1e6, res.Cost, 1e-12)
			require.Len(t, res.Attempts, 2)
			require.Equal(t, first, res.Attempts[0].Usage)
			require.True(t, res.Attempts[0].UsageKnown)
			require.ErrorIs(t, res.Attempts[0].Err, errEnding)
			require.InDelta(t, 0.005, res.Attempts[0].Cost, 1e-12)
			require.Equal(t, second, res.Attempts[1].Usage)
			require.NoError(t, res.Attempts[1].Err)

			ended := eventsOf[llmrate.EndedEvent](rec)
			require.Len(t, ended, 2)
			require.Equal(t, "alpha", ended[0].Model)
			require.ErrorIs(t, ended[0].Err, errEnding)
			require.Equal(t, ended[0].JobID, ended[1].JobID)
		})
	}
}

// A delegation with zero usage refunds everything on that model.
func TestEnding5_4DelegateRefundsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha", "beta")
		_, err := l.Run(t.Context(), "job", func(_ context.Context, a llmrate.Attempt[string]) (usage, error) {
			if a.Model == "alpha" {
				return usage{}, llmrate.Delegate(errEnding, usage{})
			}
			return usage{}, errors.New("plain, on the second")
		})
		require.ErrorIs(t, err, errEnding, "the causes of the delegation are in the final error")
		require.ErrorContains(t, err, "plain, on the second")
		endingCharged(t, l, "alpha", 0, 0)
		endingCharged(t, l, "beta", endingTokens, endingRequests)
		endingRuns(t, l, 0)
	})
}

func TestEnding5_5Panic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, rec := endingLimiter(t, "alpha", "beta")
		calls := 0
		require.PanicsWithValue(t, "boom", func() {
			_, _ = l.Run(t.Context(), "job", endingHolds(t, l, func(context.Context, llmrate.Attempt[string]) (usage, error) {
				calls++
				panic("boom")
			}))
		})
		require.Equal(t, 1, calls)
		endingCharged(t, l, "alpha", endingTokens, endingRequests)
		endingCharged(t, l, "beta", 0, 0)
		endingRuns(t, l, 0)
		ended := eventsOf[llmrate.EndedEvent](rec)
		require.Len(t, ended, 1)
		require.False(t, ended[0].UsageKnown)
	})
}

func TestEnding5_5Goexit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, rec := endingLimiter(t, "alpha", "beta")
		returned, unwound := false, make(chan struct{})
		go func() {
			defer close(unwound)
			_, _ = l.Run(t.Context(), "job", endingHolds(t, l, func(context.Context, llmrate.Attempt[string]) (usage, error) {
				runtime.Goexit()
				return usage{}, nil
			}))
			returned = true
		}()
		<-unwound
		require.False(t, returned)
		endingCharged(t, l, "alpha", endingTokens, endingRequests)
		endingCharged(t, l, "beta", 0, 0)
		endingRuns(t, l, 0)
		ended := eventsOf[llmrate.EndedEvent](rec)
		require.Len(t, ended, 1)
		require.False(t, ended[0].UsageKnown)
	})
}

// A panic on the second model: what the first was charged stays as it was corrected.
func TestEnding5_5PanicAfterDelegate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha", "beta")
		require.PanicsWithValue(t, "boom", func() {
			_, _, _ = llmrate.Do(t.Context(), l, "job", func(_ context.Context, a llmrate.Attempt[string]) (int, usage, error) {
				if a.Model == "alpha" {
					return 0, usage{}, llmrate.Delegate(errEnding, usage{Requests: 1, InputTokens: 100})
				}
				panic("boom")
			})
		})
		endingCharged(t, l, "alpha", 100, 1)
		endingCharged(t, l, "beta", endingTokens, endingRequests)
		endingRuns(t, l, 0)
	})
}

// Every way to end lets the next waiter in at once.
func TestEnding5_5LetsTheNextIn(t *testing.T) {
	for name, end := range map[string]func() error{
		"success":  func() error { return nil },
		"error":    func() error { return errEnding },
		"Reject":   func() error { return llmrate.Reject(errEnding, usage{}) },
		"Delegate": func() error { return llmrate.Delegate(errEnding, usage{}) },
		"panic":    func() error { panic("boom") },
		"Goexit":   func() error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimiter(t, config{
					Models:   []modelConfig{{ID: "alpha", Limits: limits{MaxConcurrent: 1}}},
					JobTypes: jobTypes{"job": {}},
				})
				go func() {
					defer func() { _ = recover() }()
					_, _ = l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
						time.Sleep(time.Second)
						return usage{}, end()
					})
				}()
				synctest.Wait()
				start := time.Now()
				res, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
					return usage{}, nil
				})
				require.NoError(t, err)
				require.Equal(t, time.Second, time.Since(start))
				require.Equal(t, time.Second, res.Waited)
			})
		})
	}
}

func TestEnding5_6ContextCancelledInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha", "beta")
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		res, err := l.Run(ctx, "job", endingHolds(t, l, func(inner context.Context, _ llmrate.Attempt[string]) (usage, error) {
			calls++
			cancel()
			<-inner.Done()
			return usage{}, inner.Err()
		}))
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 1, calls)
		require.False(t, res.Attempts[0].UsageKnown)
		endingCharged(t, l, "alpha", endingTokens, endingRequests)
		endingCharged(t, l, "beta", 0, 0)
		endingRuns(t, l, 0)
	})
}

// A deadline that passes inside ends the job like any other error of its function.
func TestEnding5_6DeadlineInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha", "beta")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := l.Run(ctx, "job", func(inner context.Context, _ llmrate.Attempt[string]) (usage, error) {
			<-inner.Done()
			return usage{}, fmt.Errorf("calling: %w", inner.Err())
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, llmrate.ErrNoCapacity)
		endingCharged(t, l, "alpha", endingTokens, endingRequests)
		endingRuns(t, l, 0)
	})
}

// A function that succeeds although its context has ended is a success; one that delegates then goes nowhere.
func TestEnding5_6SuccessAndDelegateAfterCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha", "beta")
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err := l.Run(ctx, "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
			cancel(errors.New("gone home"))
			return usage{Requests: 1, InputTokens: 10}, nil
		})
		require.NoError(t, err)
		endingCharged(t, l, "alpha", 10, 1)

		ctx, cancel = context.WithCancelCause(t.Context())
		var models []string
		_, err = l.Run(ctx, "job", func(_ context.Context, a llmrate.Attempt[string]) (usage, error) {
			models = append(models, a.Model)
			cancel(errors.New("gone home"))
			return usage{}, llmrate.Delegate(errEnding, usage{Requests: 1, InputTokens: 10})
		})
		require.Equal(t, []string{"alpha"}, models)
		require.ErrorIs(t, err, errEnding)
		require.ErrorContains(t, err, "gone home")
		endingCharged(t, l, "alpha", 20, 2)
		endingCharged(t, l, "beta", 0, 0)
		endingRuns(t, l, 0)
	})
}

func TestEnding5_7DelegateEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := []string{"gamma", "alpha", "beta"}
		l, rec := endingLimiter(t, names...)
		var models, ids []string
		causes := map[string]error{}
		for _, m := range names {
			causes[m] = errors.New("refused by " + m)
		}
		res, err := l.Run(t.Context(), "job", endingHolds(t, l, func(_ context.Context, a llmrate.Attempt[string]) (usage, error) {
			models, ids = append(models, a.Model), append(ids, a.JobID)
			require.Equal(t, len(models), a.Number)
			return usage{}, llmrate.Delegate(causes[a.Model], usage{Requests: 1, InputTokens: int64(1000 * a.Number)})
		}))
		require.Equal(t, names, models, "each once, in order")
		require.Equal(t, []string{ids[0], ids[0], ids[0]}, ids)
		for i, m := range names {
			require.ErrorIs(t, err, causes[m])
			require.ErrorContains(t, err, causes[m].Error())
			endingCharged(t, l, m, int64(1000*(i+1)), 1)
			require.ErrorIs(t, res.Attempts[i].Err, causes[m])
			require.Equal(t, m, res.Attempts[i].Model)
		}
		require.Len(t, res.Attempts, 3)
		require.Equal(t, "beta", res.Model)
		require.EqualValues(t, 3_000, res.Usage.InputTokens)
		require.InDelta(t, (1000*1+2000*2+3000*3)/1e6, res.Cost, 1e-12)
		require.NotErrorIs(t, err, llmrate.ErrNoCapacity)
		require.Len(t, eventsOf[llmrate.EndedEvent](rec), 3)
		endingRuns(t, l, 0)
	})
}

// The model after a delegation is full: the error is ErrNoCapacity and the cause of the delegation.
func TestEnding5_7DelegateToAFullModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha", "beta")
		for range 4 { // all of beta's concurrency
			r, err := l.Acquire(t.Context(), "job", llmrate.WithModels("beta"))
			require.NoError(t, err)
			defer r.Release()
		}
		res, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
			return usage{}, llmrate.Delegate(errEnding, usage{Requests: 1, InputTokens: 7})
		}, llmrate.WithMaxWait(2*time.Second))
		require.ErrorIs(t, err, errEnding)
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		capacity, ok := errors.AsType[*llmrate.CapacityError](err)
		require.True(t, ok)
		require.Len(t, capacity.Models, 1)
		require.Equal(t, "beta", capacity.Models[0].Model)
		require.Len(t, res.Attempts, 1)
		require.Equal(t, "alpha", res.Model)
		require.Equal(t, 2*time.Second, res.Waited)
		endingCharged(t, l, "alpha", 7, 1)
	})
}

// A delegated job queues on the next model like any other (DESIGN 3.4).
func TestEnding5_4DelegatedJobQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha", "beta")
		for range 4 {
			r, err := l.Acquire(t.Context(), "job", llmrate.WithModels("beta"))
			require.NoError(t, err)
			time.AfterFunc(7*time.Second, r.Release)
		}
		res, err := l.Run(t.Context(), "job", func(_ context.Context, a llmrate.Attempt[string]) (usage, error) {
			if a.Model == "alpha" {
				return usage{}, llmrate.Delegate(errEnding, usage{})
			}
			return usage{Requests: 1, InputTokens: 1}, nil
		})
		require.NoError(t, err)
		require.Equal(t, "beta", res.Model)
		require.Equal(t, 7*time.Second, res.Waited)
		require.Equal(t, 7*time.Second, res.Attempts[1].Waited)
	})
}

// What a job inside another returns is an error to the outer one, not a verdict on it.
func TestEndingInsideAnotherJob(t *testing.T) {
	for name, refuse := range map[string]func(error, usage) error{"Reject": llmrate.Reject, "Delegate": llmrate.Delegate} {
		scenario(t, name, func(t *testing.T) {
			l, _ := endingLimiter(t, "alpha", "beta")
			outer := 0
			_, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
				outer++
				_, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
					return usage{}, fmt.Errorf("calling: %w", refuse(errEnding, tokens(1)))
				}, llmrate.WithModels("beta"))
				require.ErrorIs(t, err, errEnding)
				return usage{}, fmt.Errorf("inside: %w", err)
			})
			require.ErrorIs(t, err, errEnding)
			require.ErrorContains(t, err, "inside: ")
			require.Equal(t, 1, outer)
			endingCharged(t, l, "alpha", endingTokens, endingRequests)
			endingCharged(t, l, "beta", 1, 1)
			endingRuns(t, l, 0)
		})
	}
}

// Do hands on the value of the last model that ran, and ends like Run.
func TestEndingDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := endingLimiter(t, "alpha", "beta")
		v, res, err := llmrate.Do(t.Context(), l, "job", func(_ context.Context, a llmrate.Attempt[string]) (string, usage, error) {
			if a.Model == "alpha" {
				return "first", usage{}, llmrate.Delegate(errEnding, usage{Requests: 1, InputTokens: 5})
			}
			return "second", usage{Requests: 1, InputTokens: 6}, nil
		})
		require.NoError(t, err)
		require.Equal(t, "second", v)
		require.Len(t, res.Attempts, 2)
		endingCharged(t, l, "alpha", 5, 1)
		endingCharged(t, l, "beta", 6, 1)

		_, _, err = llmrate.Do(t.Context(), l, "job", func(context.Context, llmrate.Attempt[string]) (string, usage, error) {
			return "", usage{}, llmrate.Reject(errEnding, usage{})
		})
		require.ErrorIs(t, err, errEnding)
		endingCharged(t, l, "alpha", 5, 1)
		endingRuns(t, l, 0)
	})
}
