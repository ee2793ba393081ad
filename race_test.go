package llmrate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// One test for each race between the ways in which a wait or a reservation can end. Whoever wins, afterwards nothing is
// held. The first half plays them in virtual time, where both sides act at the same instant; the second half lets real
// goroutines run into each other.

// raceNothingHeld checks that no job is in l, that no timer is armed, and that all of its capacity can be had again: n
// jobs of the type start, one more does not. They refund everything.
func raceNothingHeld(t *testing.T, l *limiter, jobType string, n int) {
	t.Helper()
	st := l.Stats()
	require.Empty(t, st.Jobs)
	require.Zero(t, st.Memory.Used)
	for id, m := range st.Models {
		require.Zero(t, m.Concurrency.Active, "active on %s", id)
		require.Zero(t, m.Concurrency.Waiting, "waiting on %s", id)
		for name, s := range m.JobTypes {
			require.Zero(t, s.InFlight, "%s in flight on %s", name, id)
			require.Zero(t, s.Waiting, "%s waiting on %s", name, id)
		}
	}
	for name, s := range st.JobTypes {
		require.Zero(t, s.InFlight, "%s in flight", name)
		require.Zero(t, s.Waiting, "%s waiting", name)
	}
	require.Zero(t, llmrate.ArmedTimers(l), "timers")

	var again []*llmrate.Reservation[string]
	for {
		r, err := l.TryAcquire(t.Context(), jobType)
		if err != nil {
			require.ErrorIs(t, err, llmrate.ErrNoCapacity)
			break
		}
		again = append(again, r)
		require.LessOrEqual(t, len(again), n)
	}
	require.Len(t, again, n, "capacity that can be had again")
	for _, r := range again {
		require.NoError(t, r.Settle(usage{}))
	}
}

// raceAtOnce calls all functions at the same time and waits for them.
func raceAtOnce(fns ...func()) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for _, fn := range fns {
		wg.Go(func() {
			<-start
			fn()
		})
	}
	close(start)
	wg.Wait()
}

// raceWaiter is a call of Acquire on its way.
type raceWaiter struct {
	r    *llmrate.Reservation[string]
	err  error
	at   time.Duration // virtual, when it ended
	done chan struct{}
}

// raceAcquire starts one and waits until it waits.
func raceAcquire(ctx context.Context, l *limiter, jobType string, opts ...llmrate.RunOption) *raceWaiter {
	w := &raceWaiter{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.r, w.err = l.Acquire(ctx, jobType, opts...)
		w.at = elapsed()
	}()
	synctest.Wait()
	return w
}

// waits reports whether it still does.
func (w *raceWaiter) waits() bool {
	synctest.Wait()
	select {
	case <-w.done:
		return false
	default:
		return true
	}
}

// end of the call: its reservation is released, or its error must be one of these.
func (w *raceWaiter) end(t *testing.T, allowed ...error) (granted bool) {
	t.Helper()
	<-w.done
	if w.err == nil {
		w.r.Release()
		return true
	}
	require.Nil(t, w.r)
	require.True(t, slices.ContainsFunc(allowed, func(err error) bool { return errors.Is(w.err, err) }), "%v", w.err)
	return false
}

// raceSlots is a limiter with one model and so much concurrency.
func raceSlots(t *testing.T, slots int64, onEvent ...func(context.Context, llmrate.Event)) *limiter {
	t.Helper()
	cfg := config{
		Models:   []modelConfig{{ID: "a", Limits: limits{MaxConcurrent: slots}}},
		JobTypes: jobTypes{"job": {EstimatedTokens: 10, MaxWait: maxWait{"a": time.Hour}}},
	}
	if len(onEvent) > 0 {
		cfg.OnEvent = onEvent[0]
	}
	return newLimiter(t, cfg)
}

func TestRaceGrantVersusCancel(t *testing.T) {
	scenario(t, "at the same instant", func(t *testing.T) {
		l := raceSlots(t, 1)
		for range 200 {
			held := acquire(t, l, "job")
			ctx, cancel := context.WithCancel(t.Context())
			w := raceAcquire(ctx, l, "job")
			raceAtOnce(held.Release, cancel)
			w.end(t, context.Canceled)
			raceNothingHeld(t, l, "job", 1)
		}
	})
	scenario(t, "cancelled when it is granted already, but does not know it yet", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that the waiter comes to run only after both
		l := raceSlots(t, 1)
		gone := 0
		for range 100 {
			held := acquire(t, l, "job")
			ctx, cancel := context.WithCancel(t.Context())
			w, next := raceAcquire(ctx, l, "job"), raceAcquire(t.Context(), l, "job")
			held.Release()
			cancel()
			if !w.end(t, context.Canceled) {
				gone++
			}
			require.True(t, next.end(t), "the slot goes on to the next")
			require.Zero(t, next.at)
			raceNothingHeld(t, l, "job", 1)
		}
		require.NotZero(t, gone, "the race was not met once")
	})
	scenario(t, "Run starts nothing for a caller who has gone", func(t *testing.T) {
		l := raceSlots(t, 1)
		for range 200 {
			held := acquire(t, l, "job")
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			var cancelled atomic.Bool
			go func() {
				defer close(done)
				wasGone := false
				_, err := l.Run(ctx, "job", func(ctx context.Context, _ llmrate.Attempt[string]) (usage, error) {
					wasGone = cancelled.Load() && ctx.Err() == nil
					return usage{}, nil
				})
				if wasGone || err != nil && !errors.Is(err, context.Canceled) {
					t.Error(wasGone, err)
				}
			}()
			synctest.Wait()
			raceAtOnce(held.Release, func() { cancel(); cancelled.Store(true) })
			<-done
			raceNothingHeld(t, l, "job", 1)
		}
	})
}

func TestRaceTimeoutVersusGrant(t *testing.T) {
	for _, c := range []struct {
		name string
		held time.Duration // until when the slot is taken
	}{{"just before", time.Second - 1}, {"at the same instant", time.Second}, {"just after", time.Second + 1}} {
		scenario(t, c.name, func(t *testing.T) {
			l := raceSlots(t, 1)
			for i := range 50 {
				start := elapsed()
				held := acquire(t, l, "job")
				if i%2 == 0 { // so that either timer is the older one
					time.AfterFunc(c.held, held.Release)
				}
				first := raceAcquire(t.Context(), l, "job", llmrate.WithMaxWait(time.Second))
				next := raceAcquire(t.Context(), l, "job", llmrate.WithMaxWait(2*time.Second))
				if i%2 == 1 {
					time.AfterFunc(c.held, held.Release)
				}
				granted := first.end(t, llmrate.ErrNoCapacity)
				require.Equal(t, start+min(c.held, time.Second), first.at)
				if c.held != time.Second {
					require.Equal(t, c.held < time.Second, granted)
				}
				require.True(t, next.end(t), "and the next one has it")
				require.LessOrEqual(t, next.at, start+max(c.held, time.Second))
				raceNothingHeld(t, l, "job", 1)
			}
		})
	}
	scenario(t, "of an attempt with a timer of its own", func(t *testing.T) {
		l := raceSlots(t, 1)
		for range 50 {
			held := acquire(t, l, "job")
			head := raceAcquire(t.Context(), l, "job", llmrate.WithMaxWait(minute))
			second := raceAcquire(t.Context(), l, "job", llmrate.WithMaxWait(time.Second))
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, held.Release)
			time.AfterFunc(time.Second, cancel)
			raced := raceAcquire(ctx, l, "job", llmrate.WithMaxWait(time.Second))
			require.True(t, head.end(t))
			second.end(t, llmrate.ErrNoCapacity)
			raced.end(t, llmrate.ErrNoCapacity, context.Canceled)
			raceNothingHeld(t, l, "job", 1)
		}
	})
}

func TestRaceCloseVersusGrant(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			l := raceSlots(t, 1)
			held := acquire(t, l, "job")
			w, next := raceAcquire(t.Context(), l, "job"), raceAcquire(t.Context(), l, "job")
			var closed error
			closing := make(chan struct{})
			raceAtOnce(held.Release, func() {
				go func() {
					defer close(closing)
					closed = l.Close(t.Context())
				}()
			})
			w.end(t, llmrate.ErrClosed)
			next.end(t, llmrate.ErrClosed)
			<-closing
			require.NoError(t, closed)
			require.Empty(t, l.Stats().Jobs)
			require.Zero(t, llmrate.ArmedTimers(l))
			_, err := l.Acquire(t.Context(), "job")
			require.ErrorIs(t, err, llmrate.ErrClosed)
		})
	}
}

func TestRaceCloseWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "a", Limits: limits{MaxConcurrent: 1}}, {ID: "b", Limits: limits{TokensPerMinute: 10}}},
			JobTypes: jobTypes{"x": {EstimatedTokens: 10, Ratio: 0.5}, "y": {EstimatedTokens: 10, Ratio: 0.5}},
		})
		running := runJobs(t, l, "x", 2, job(5*time.Second, tokens(7)), llmrate.WithMaxWait(0)) // one on each
		var waiters []*raceWaiter
		for i := range 12 {
			waiters = append(waiters, raceAcquire(t.Context(), l, []string{"x", "y"}[i%2], llmrate.WithModels([]string{"a", "b"}[i/2%2])))
		}
		sleepUntil(2 * time.Second)
		closing := make(chan error)
		go func() { closing <- l.Close(t.Context()) }()
		for _, w := range waiters {
			require.False(t, w.end(t, llmrate.ErrClosed))
			require.Equal(t, 2*time.Second, w.at)
		}
		synctest.Wait()
		require.Zero(t, llmrate.ArmedTimers(l))
		require.Len(t, l.Stats().Jobs, 2)

		// A second Close whose context ends first says so; jobs go on.
		ctx, cancel := context.WithCancelCause(t.Context())
		impatient := errors.New("impatient")
		time.AfterFunc(time.Second, func() { cancel(impatient) })
		require.ErrorIs(t, l.Close(ctx), impatient)
		require.Equal(t, 3*time.Second, elapsed())

		require.NoError(t, <-closing)
		require.Equal(t, 5*time.Second, elapsed())
		running.wait()
		require.NoError(t, l.Close(t.Context()))
		require.EqualValues(t, 7, l.Stats().Models["b"].TokensPerMinute.Used, "settled after Close began")
	})
}

// A job that moves on to another model while the limiter closes ends with ErrClosed and what went wrong before.
func TestRaceCloseVersusDelegate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{Models: waitingModels("a", "b"), JobTypes: jobTypes{"job": {}}})
		cause := errors.New("delegated")
		delegated := runJobs(t, l, "job", 1, func(context.Context, llmrate.Attempt[string]) (usage, error) {
			time.Sleep(time.Second)
			return usage{}, llmrate.Delegate(cause, usage{})
		})
		require.NoError(t, l.Close(t.Context()))
		require.Equal(t, time.Second, elapsed())
		delegated.all.Wait()
		err := delegated.ends()[0].err
		require.ErrorIs(t, err, llmrate.ErrClosed)
		require.ErrorIs(t, err, cause)
	})
}

func TestRaceEndOfTheHeadLetsTheNextIn(t *testing.T) {
	for name, opts := range map[string][]llmrate.RunOption{
		"cancel":                         {llmrate.WithMaxWait(time.Hour)},
		"timeout":                        {llmrate.WithMaxWait(time.Second)},
		"timeout before a predecessor's": nil,
	} {
		scenario(t, name, func(t *testing.T) {
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "a", Limits: limits{TokensPerDay: 10_000}}},
				JobTypes: jobTypes{"job": {EstimatedTokens: 6_000, MaxWait: maxWait{"a": time.Hour}}},
			})
			held := acquire(t, l, "job")
			ctx, cancel := context.WithCancel(t.Context())
			var heads []*raceWaiter
			if opts == nil {
				heads = append(heads, raceAcquire(ctx, l, "job"))
				opts = []llmrate.RunOption{llmrate.WithMaxWait(time.Second)}
			}
			heads = append(heads, raceAcquire(ctx, l, "job", opts...))
			small := llmrate.WithEstimate(tokens(2_000))
			first, second := raceAcquire(t.Context(), l, "job", small), raceAcquire(t.Context(), l, "job", small)
			third := raceAcquire(t.Context(), l, "job", small)
			time.AfterFunc(time.Second, cancel)
			for _, head := range heads {
				require.False(t, head.end(t, context.Canceled, llmrate.ErrNoCapacity))
				require.Equal(t, time.Second, head.at)
			}
			<-first.done
			<-second.done
			require.Equal(t, time.Second, first.at)
			require.Equal(t, time.Second, second.at)
			require.True(t, third.waits(), "4,000 were free")
			require.NoError(t, held.Settle(usage{}))
			<-third.done
			for _, w := range []*raceWaiter{first, second, third} {
				require.NoError(t, w.err)
				require.NoError(t, w.r.Settle(usage{}))
			}
			raceNothingHeld(t, l, "job", 1)
		})
	}
}

func TestRaceCancelInTheMiddleOfAQueue(t *testing.T) {
	for gone := range 1 << 5 { // every set of five waiters
		synctest.Test(t, func(t *testing.T) {
			l := raceSlots(t, 1)
			held := acquire(t, l, "job")
			var waiters []*raceWaiter
			var cancels []context.CancelFunc
			for range 5 {
				ctx, cancel := context.WithCancel(t.Context())
				waiters, cancels = append(waiters, raceAcquire(ctx, l, "job")), append(cancels, cancel)
			}
			var leaving []func()
			for i, cancel := range cancels {
				if gone&(1<<i) != 0 {
					leaving = append(leaving, cancel)
				}
			}
			raceAtOnce(leaving...)
			synctest.Wait()
			require.EqualValues(t, 5-len(leaving), l.Stats().Models["a"].Concurrency.Waiting)
			waiters = append(waiters, raceAcquire(t.Context(), l, "job")) // goes to the end
			for i, w := range waiters {
				if gone&(1<<i) != 0 {
					require.False(t, w.end(t, context.Canceled))
					continue
				}
				held.Release()
				<-w.done
				for _, behind := range waiters[i+1:] {
					require.True(t, gone&(1<<slices.Index(waiters, behind)) != 0 || behind.waits(), "in order")
				}
				held = w.r
			}
			held.Release()
			raceNothingHeld(t, l, "job", 1)
		})
	}
}

func TestRaceCancelOfEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := raceSlots(t, 3)
		for range 20 {
			var held []*llmrate.Reservation[string]
			for range 3 {
				held = append(held, acquire(t, l, "job"))
			}
			ctx, cancel := context.WithCancel(t.Context())
			var waiters []*raceWaiter
			for range 20 {
				waiters = append(waiters, raceAcquire(ctx, l, "job"))
			}
			raceAtOnce(held[0].Release, cancel, held[1].Release, held[2].Release)
			for _, w := range waiters {
				w.end(t, context.Canceled)
			}
			raceNothingHeld(t, l, "job", 3)
		}
	})
}

func TestRaceShorterMaxWaitThanAPredecessors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := raceSlots(t, 1)
		held := acquire(t, l, "job")
		var waiters []*raceWaiter
		waits := []time.Duration{30, 5, 40, 10, 10, 50, 1}
		for _, seconds := range waits {
			waiters = append(waiters, raceAcquire(t.Context(), l, "job", llmrate.WithMaxWait(seconds*time.Second)))
		}
		time.AfterFunc(20*time.Second, held.Release)
		for i, seconds := range waits {
			w := waiters[i]
			<-w.done
			if seconds < 20 {
				require.False(t, w.end(t, llmrate.ErrNoCapacity))
				require.Equal(t, seconds*time.Second, w.at)
			} else {
				require.True(t, w.end(t))
				require.Equal(t, 20*time.Second, w.at)
			}
		}
		raceNothingHeld(t, l, "job", 1)
	})
}

// The edge of a window lets somebody in who leaves at the same instant.
func TestRaceWindowEdgeVersusCancelAndTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "a", Limits: limits{RequestsPerMinute: 2}}},
			JobTypes: jobTypes{"job": {MaxWait: maxWait{"a": time.Hour}}},
		})
		for i := range 20 {
			edge := time.Duration(i+1) * minute
			sleepUntil(edge - 10*time.Second)
			fill(t, l, "job")
			ctx, cancel := context.WithCancel(t.Context())
			leavers := []*raceWaiter{raceAcquire(ctx, l, "job"), raceAcquire(t.Context(), l, "job", llmrate.WithMaxWait(10*time.Second))}
			if i%2 == 0 {
				leavers = append(leavers, raceAcquire(ctx, l, "job"))
			}
			time.AfterFunc(10*time.Second, cancel)
			stayer := raceAcquire(t.Context(), l, "job")
			taken := 0
			for _, w := range leavers {
				<-w.done
				require.Equal(t, edge, w.at)
				if w.err == nil {
					taken++
					require.NoError(t, w.r.Settle(usage{})) // makes room again
				} else {
					require.True(t, errors.Is(w.err, context.Canceled) || errors.Is(w.err, llmrate.ErrNoCapacity))
				}
			}
			<-stayer.done
			require.NoError(t, stayer.err)
			require.Equal(t, edge, stayer.at)
			require.NoError(t, stayer.r.Settle(usage{}))
			for _, j := range l.Stats().Jobs { // those that fill has left
				require.True(t, j.Since.Before(midnight.Add(edge)), "of %d", taken)
			}
			require.Zero(t, l.Stats().Models["a"].RequestsPerMinute.Used)
			require.Zero(t, llmrate.ArmedTimers(l))
		}
	})
}

// A reservation ends once, whoever ends it.
func TestRaceSettleVersusRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "a", Limits: limits{TokensPerMinute: 1_000, MaxConcurrent: 2}}},
			JobTypes: jobTypes{"job": {EstimatedTokens: 100, EstimatedMemory: mib}},
			Memory:   llmrate.MemoryConfig{Limit: 2 * mib, Share: 1},
		})
		for range 100 {
			stays, raced := acquire(t, l, "job"), acquire(t, l, "job")
			var wins atomic.Int64
			settle := func(n int64) func() {
				return func() {
					switch err := raced.Settle(tokens(n)); {
					case err == nil:
						wins.Add(1)
					case !errors.Is(err, llmrate.ErrSettled):
						t.Error(err)
					}
				}
			}
			raceAtOnce(raced.Release, settle(10), raced.Release, settle(20), settle(10), raced.Release)
			require.LessOrEqual(t, wins.Load(), int64(1))
			m := l.Stats().Models["a"]
			if wins.Load() == 0 { // a Release was first
				require.EqualValues(t, 200, m.TokensPerMinute.Used)
			} else {
				require.Contains(t, []int64{110, 120}, m.TokensPerMinute.Used)
			}
			require.EqualValues(t, 1, m.Concurrency.Active)
			require.Equal(t, mib, l.Stats().Memory.Used)
			require.ErrorIs(t, raced.Settle(tokens(999)), llmrate.ErrSettled)
			require.NoError(t, stays.Settle(usage{}))
			raceNothingHeld(t, l, "job", 2)
			sleepUntil(elapsed() + minute)
		}
	})
}

// A context that has ended never gets a reservation, however much room there is.
func TestRaceContextAlreadyDone(t *testing.T) {
	cause := errors.New("over")
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		l := raceSlots(t, 3, rec.record)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		expired, cancelExpired := context.WithDeadline(t.Context(), time.Now())
		defer cancelExpired()
		for ctx, want := range map[context.Context]error{ctx: cause, expired: context.DeadlineExceeded} {
			_, err := l.Run(ctx, "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
				t.Error("must not run")
				return usage{}, nil
			})
			require.ErrorIs(t, err, want)
			_, err = l.Acquire(ctx, "job")
			require.ErrorIs(t, err, want)
			_, err = l.TryAcquire(ctx, "job")
			require.ErrorIs(t, err, want)
		}
		require.Empty(t, eventsOf[llmrate.StartedEvent](rec))
		require.Empty(t, eventsOf[llmrate.QueuedEvent](rec))
		require.Zero(t, l.Stats().Models["a"].TokensPerMinute.Used)
		raceNothingHeld(t, l, "job", 3)
	})

	// Nor does one that ends on the way: in each event before the start, on the first model or between two.
	for _, c := range []struct {
		name  string
		event func(llmrate.Event) bool
		wait  time.Duration
	}{
		{"while it queues", func(e llmrate.Event) bool { _, ok := e.(llmrate.QueuedEvent); return ok }, time.Second},
		{"between two models, after a wait", func(e llmrate.Event) bool { _, ok := e.(llmrate.EscalatedEvent); return ok }, time.Second},
		{"between two models, without a wait", func(e llmrate.Event) bool { _, ok := e.(llmrate.EscalatedEvent); return ok }, 0},
	} {
		scenario(t, c.name, func(t *testing.T) {
			var cancel context.CancelCauseFunc
			l := newLimiter(t, config{
				Models: waitingModels("a", "b"), JobTypes: jobTypes{"job": {}},
				OnEvent: func(_ context.Context, e llmrate.Event) {
					if c.event(e) {
						cancel(cause)
					}
				},
			})
			held := acquire(t, l, "job", llmrate.WithModels("a"))
			ctx, stop := context.WithCancelCause(t.Context())
			cancel = stop
			_, err := l.Run(ctx, "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
				t.Error("must not run")
				return usage{}, nil
			}, llmrate.WithMaxWait(c.wait))
			require.ErrorIs(t, err, cause)
			ctx, stop = context.WithCancelCause(t.Context())
			cancel = stop
			_, err = l.Acquire(ctx, "job", llmrate.WithMaxWait(c.wait))
			require.ErrorIs(t, err, cause)
			stop(nil)
			held.Release()
			raceNothingHeld(t, l, "job", 2)
		})
	}
}

func TestRaceOnEventPanics(t *testing.T) {
	const boom = "an observer broke"
	for _, c := range []struct {
		event  string // its type
		busy   string // the model that another job runs on
		models []string
	}{
		{"llmrate.QueuedEvent", "a", []string{"a", "b"}},
		{"llmrate.EscalatedEvent", "a", []string{"a", "b"}},
		{"llmrate.RefusedEvent", "a", []string{"a"}},
		{"llmrate.StartedEvent", "", []string{"a"}},
		{"llmrate.EndedEvent", "", []string{"a"}},
		{"llmrate.OverageEvent", "", []string{"a"}},
		{"llmrate.RatiosEvent", "b", []string{"a"}},
	} {
		scenario(t, c.event, func(t *testing.T) {
			armed, met := false, 0
			l := newLimiter(t, config{
				Models: []modelConfig{
					{ID: "a", Limits: limits{MaxConcurrent: 1, TokensPerDay: 10_000}},
					{ID: "b", Limits: limits{MaxConcurrent: 10, TokensPerDay: 10_000}},
				},
				JobTypes: jobTypes{
					"job":   {EstimatedTokens: 10, EstimatedMemory: mib},
					"other": {EstimatedTokens: 10, EstimatedMemory: mib},
				},
				Memory: llmrate.MemoryConfig{Limit: 100 * mib, Share: 1},
				Ratios: llmrate.RatioConfig{Settlements: 1, HighLoad: 0.02, LowLoad: 0.01},
				OnEvent: func(_ context.Context, e llmrate.Event) {
					if armed && fmt.Sprintf("%T", e) == c.event {
						met++
						panic(boom)
					}
				},
			})
			calls := map[string]func(){
				"Run": func() {
					_, _ = l.Run(t.Context(), "job", job(0, tokens(30)), llmrate.WithMaxWait(time.Second), llmrate.WithModels(c.models...))
				},
				"Acquire": func() {
					r, err := l.Acquire(t.Context(), "job", llmrate.WithMaxWait(time.Second), llmrate.WithModels(c.models...))
					if err == nil {
						defer r.Release()
						err = r.Settle(tokens(30))
					}
					if err != nil {
						t.Error(err)
					}
				},
			}
			for name, call := range calls {
				var held *llmrate.Reservation[string]
				if c.busy != "" {
					held = acquire(t, l, "job", llmrate.WithModels(c.busy))
				}
				met, armed = 0, true
				require.PanicsWithValue(t, boom, call, name)
				require.NotZero(t, met)
				armed = false
				held.Release()
				synctest.Wait()
				require.Empty(t, l.Stats().Jobs, name)
				require.Zero(t, l.Stats().Memory.Used)
				require.Zero(t, llmrate.ArmedTimers(l))
				for range 3 { // and it goes on working
					_, err := l.Run(t.Context(), "job", job(time.Second, tokens(1)))
					require.NoError(t, err)
				}
			}
		})
	}
}

// Config.OnEvent may call the limiter, whatever the event.
func TestRaceOnEventCallsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *limiter
		var depth atomic.Int64
		seen := map[string]int{}
		var mu sync.Mutex
		l = newLimiter(t, config{
			Models: []modelConfig{
				{ID: "a", Limits: limits{MaxConcurrent: 2, TokensPerMinute: 2_000}},
				{ID: "b", Limits: limits{MaxConcurrent: 3, TokensPerMinute: 3_000}},
			},
			JobTypes: jobTypes{
				"job":   {EstimatedTokens: 100, EstimatedMemory: mib},
				"other": {EstimatedTokens: 100, EstimatedMemory: mib},
			},
			Memory: llmrate.MemoryConfig{Limit: 10 * mib, Share: 1},
			OnEvent: func(ctx context.Context, e llmrate.Event) {
				mu.Lock()
				seen[fmt.Sprintf("%T", e)]++
				mu.Unlock()
				_ = l.Stats()
				_, _ = l.Available("job")
				if depth.Add(1) <= 2 { // each call below causes events itself
					if r, err := l.TryAcquire(ctx, "other"); err == nil {
						_ = r.Settle(tokens(10))
					}
					_, _ = l.Run(ctx, "job", job(0, tokens(500)), llmrate.WithMaxWait(0))
					short, cancel := context.WithTimeout(ctx, time.Millisecond)
					_, _ = l.Acquire(short, "job", llmrate.WithModels("none"))
					cancel()
				}
				depth.Add(-1)
			},
		})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				_, _ = l.Run(t.Context(), "job", func(ctx context.Context, _ llmrate.Attempt[string]) (usage, error) {
					if i == 7 {
						return usage{}, llmrate.Delegate(errors.New("on"), usage{})
					}
					return tokens(300), sleep(ctx, time.Second)
				}, llmrate.WithMaxWait(time.Duration(i)*time.Second))
			})
		}
		wg.Wait()
		for _, e := range []llmrate.Event{
			llmrate.QueuedEvent{}, llmrate.StartedEvent{}, llmrate.EndedEvent{}, llmrate.EscalatedEvent{}, llmrate.OverageEvent{},
			llmrate.RefusedEvent{}, llmrate.RatiosEvent{},
		} {
			require.NotZero(t, seen[fmt.Sprintf("%T", e)], "%T", e)
		}
		require.Empty(t, l.Stats().Jobs)
		require.Zero(t, llmrate.ArmedTimers(l))
	})
}

// A head that has waited for memory for long is owed the next that comes free. Whoever stands behind that must come in
// as soon as the debt is paid or forgotten: these are lost wake-ups if not.
func TestRaceMemoryOwedToAHead(t *testing.T) {
	cfg := func() config {
		return config{
			Models: []modelConfig{{ID: "a"}, {ID: "b"}},
			JobTypes: jobTypes{
				"large": {EstimatedMemory: 60 * mib, FixedRatio: true, MaxWait: maxWait{"a": 70 * time.Second, "b": 70 * time.Second}},
				"small": {EstimatedMemory: 10 * mib, FixedRatio: true, MaxWait: maxWait{"a": 10 * minute, "b": 10 * minute}},
				"other": {EstimatedMemory: 60 * mib, FixedRatio: true},
			},
			Memory: llmrate.MemoryConfig{Limit: 100 * mib, Share: 1},
		}
	}
	scenario(t, "the head gets it, but its type is the last to be served", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a", MinCapacity: 2}},
			JobTypes: jobTypes{
				"large": {EstimatedMemory: 45 * mib, FixedRatio: true, MaxWait: maxWait{"a": time.Hour}},
				"small": {EstimatedMemory: 10 * mib, FixedRatio: true, MaxWait: maxWait{"a": time.Hour}},
				"other": {EstimatedMemory: 50 * mib, FixedRatio: true},
			},
			Memory: llmrate.MemoryConfig{Limit: 100 * mib, Share: 1},
		})
		acquire(t, l, "large") // and so the type with the most load
		held := acquire(t, l, "other")
		head := raceAcquire(t.Context(), l, "large")
		sleepUntil(65 * time.Second)
		small := raceAcquire(t.Context(), l, "small")
		held.Release()
		require.True(t, small.end(t))
		require.Equal(t, 65*time.Second, small.at, "10 MiB are left beside the head")
		require.True(t, head.end(t))
		require.Equal(t, 65*time.Second, head.at)
	})

	for where := range 8 { // each on either model
		model := func(bit int) string { return string("ab"[where>>bit&1]) }
		on := func(bit int) llmrate.RunOption { return llmrate.WithModels(model(bit)) }
		for name, end := range map[string]func(*raceWaiter, context.CancelFunc, *llmrate.Reservation[string]){
			"gives up":     func(head *raceWaiter, _ context.CancelFunc, _ *llmrate.Reservation[string]) { <-head.done },
			"is cancelled": func(_ *raceWaiter, cancel context.CancelFunc, _ *llmrate.Reservation[string]) { cancel() },
			"gets it":      func(_ *raceWaiter, _ context.CancelFunc, held *llmrate.Reservation[string]) { held.Release() },
		} {
			scenario(t, fmt.Sprintf("the head on %s %s, small on %s, the holder on %s", model(0), name, model(1), model(2)), func(t *testing.T) {
				l := newLimiter(t, cfg())
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				held := acquire(t, l, "other", on(2))
				head := raceAcquire(ctx, l, "large", on(0))
				sleepUntil(65 * time.Second)
				small := raceAcquire(t.Context(), l, "small", on(1))
				require.True(t, small.waits())
				end(head, cancel, held)
				<-head.done
				if name == "gets it" {
					require.NoError(t, head.err)
					t.Cleanup(head.r.Release)
				} else {
					require.Error(t, head.err)
				}
				require.True(t, small.end(t))
				require.Equal(t, head.at, small.at, "40 MiB are left, and nobody else waits for them")
				held.Release()
				head.r.Release()
				raceNothingHeld(t, l, "large", 1)
			})
		}
	}
}

// The same for a bucket, which smaller jobs of other types would else keep empty for ever.
func TestRaceBucketOwedToAHead(t *testing.T) {
	for name, end := range map[string]func(context.CancelFunc){
		"cancelled": func(cancel context.CancelFunc) { cancel() },
		"timed out": func(context.CancelFunc) {}, // at the same time
		"granted":   nil,
	} {
		scenario(t, name, func(t *testing.T) {
			l := newLimiter(t, config{
				// MinCapacity overrides the shares, which would else leave something to the large job. In the day "large" has
				// the most load, so that "late" is served before it.
				Models: []modelConfig{{
					ID: "m", Limits: limits{TokensPerMinute: 600, TokensPerDay: 600_000, Refill: llmrate.Continuous}, MinCapacity: 1_000,
				}},
				JobTypes: jobTypes{
					"large": {EstimatedTokens: 300, FixedRatio: true}, "small": {EstimatedTokens: 10, FixedRatio: true},
					"late": {EstimatedTokens: 10, FixedRatio: true}, "free": {FixedRatio: true},
				},
			})
			patience := 75 * time.Second
			if end == nil {
				patience = time.Hour
			}
			require.NoError(t, acquire(t, l, "large", llmrate.WithEstimate(tokens(600))).Settle(tokens(600)))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			large := raceAcquire(ctx, l, "large", llmrate.WithMaxWait(patience))
			for second := range 60 { // all that comes free, 10 a second
				sleepUntil(time.Duration(second) * time.Second)
				if r, err := l.TryAcquire(t.Context(), "small"); err == nil {
					r.Release()
				}
			}
			sleepUntil(70 * time.Second)
			require.True(t, large.waits())
			requireFull(t, l, "small")
			_, ok := l.Available("small")
			require.False(t, ok, "what is there is not for small jobs")
			acquire(t, l, "free") // needs nothing of the bucket
			late := raceAcquire(t.Context(), l, "late", llmrate.WithMaxWait(time.Hour))
			require.True(t, late.waits())
			sleepUntil(75*time.Second - 1)
			require.True(t, late.waits())
			if end != nil {
				sleepUntil(75 * time.Second)
				end(cancel)
				require.False(t, large.end(t, context.Canceled, llmrate.ErrNoCapacity))
				require.True(t, late.end(t))
				require.Equal(t, 75*time.Second, late.at)
				_, ok := l.Available("small")
				require.True(t, ok)
			} else {
				require.True(t, large.end(t))
				require.LessOrEqual(t, large.at, 91*time.Second, "a full bucket's time, and half of one to fill")
				require.True(t, late.end(t))
				require.LessOrEqual(t, late.at, large.at+time.Second)
			}
		})
	}
}

// ---- real concurrency ----

// hammer calls fn from several goroutines, rounds times each, and gives each a generator of its own. It prints the seed.
func hammer(t *testing.T, goroutines, rounds int, fn func(rng *rand.Rand)) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(g)))
			for range rounds {
				fn(rng)
			}
		})
	}
	wg.Wait()
}

// hammerPause lets others run.
func hammerPause(rng *rand.Rand) {
	for range rng.IntN(4) {
		runtime.Gosched()
	}
}

func TestHammerGrantVersusCancel(t *testing.T) {
	l := raceSlots(t, 2)
	var granted, cancelled, active atomic.Int64
	hammer(t, 8, 400, func(rng *rand.Rand) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if rng.IntN(3) > 0 {
			pause := rand.New(rand.NewPCG(rng.Uint64(), 0))
			go func() {
				hammerPause(pause)
				cancel()
			}()
		}
		r, err := l.Acquire(ctx, "job")
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			cancelled.Add(1)
			return
		}
		granted.Add(1)
		if active.Add(1) > 2 {
			t.Error("more than two at a time")
		}
		hammerPause(rng)
		active.Add(-1)
		if rng.IntN(2) == 0 {
			cancel()
		}
		r.Release()
	})
	require.NotZero(t, granted.Load())
	require.NotZero(t, cancelled.Load())
	raceNothingHeld(t, l, "job", 2)
}

func TestHammerTimeoutVersusGrant(t *testing.T) {
	l := raceSlots(t, 1)
	var granted, expired atomic.Int64
	hammer(t, 8, 200, func(rng *rand.Rand) {
		r, err := l.Acquire(t.Context(), "job", llmrate.WithMaxWait(time.Duration(rng.IntN(300))*time.Microsecond))
		if err != nil {
			if !errors.Is(err, llmrate.ErrNoCapacity) {
				t.Error(err)
			}
			expired.Add(1)
			return
		}
		granted.Add(1)
		for range rng.IntN(200) {
			runtime.Gosched()
		}
		r.Release()
	})
	require.NotZero(t, granted.Load())
	require.NotZero(t, expired.Load())
	raceNothingHeld(t, l, "job", 1)
}

func TestHammerSettleVersusRelease(t *testing.T) {
	l := newLimiter(t, config{
		Models:   []modelConfig{{ID: "a", Limits: limits{MaxConcurrent: 3, Custom: []llmrate.CustomLimit{hammerYear(1 << 40)}}}},
		JobTypes: jobTypes{"job": {EstimatedTokens: 100}},
	})
	var charged atomic.Int64
	hammer(t, 3, 200, func(rng *rand.Rand) {
		r, err := l.Acquire(t.Context(), "job")
		if err != nil {
			t.Error(err)
			return
		}
		var wins atomic.Int64
		settle := func() {
			switch err := r.Settle(tokens(30)); {
			case err == nil:
				wins.Add(1)
			case !errors.Is(err, llmrate.ErrSettled):
				t.Error(err)
			}
		}
		if rng.IntN(2) == 0 {
			raceAtOnce(r.Release, settle, settle)
		} else {
			raceAtOnce(settle, r.Release, r.Release)
		}
		switch wins.Load() {
		case 0:
			charged.Add(100)
		case 1:
			charged.Add(30)
		default:
			t.Error("settled twice")
		}
	})
	require.Equal(t, charged.Load(), l.Stats().Models["a"].Custom[0].Used)
	raceNothingHeld(t, l, "job", 3)
}

// hammerYear is a limit whose window does not end while a test runs.
func hammerYear(most int64) llmrate.CustomLimit {
	return llmrate.CustomLimit{Resource: llmrate.Tokens, Per: 366 * day, Max: most}
}

// hammerMix is everything at once: two models, two job types, every end of a job, timeouts, cancels and readers. It
// recounts from the outside what has been charged and how many run.
type hammerMix struct {
	t       *testing.T
	l       *limiter
	running [2]atomic.Int64
	charged [2]atomic.Int64
	starts  atomic.Int64
}

var hammerSlots = [2]int64{2, 3}

func newHammerMix(t *testing.T) *hammerMix {
	return &hammerMix{t: t, l: newLimiter(t, config{
		Models: []modelConfig{
			{ID: "0", Limits: limits{MaxConcurrent: hammerSlots[0], Custom: []llmrate.CustomLimit{hammerYear(1 << 40)}}},
			{ID: "1", Limits: limits{MaxConcurrent: hammerSlots[1], RequestsPerMinute: 1 << 40, Custom: []llmrate.CustomLimit{hammerYear(1 << 40)}}},
		},
		JobTypes: jobTypes{
			"x": {EstimatedTokens: 100, EstimatedMemory: mib},
			"y": {EstimatedTokens: 100, EstimatedMemory: 2 * mib, MaxWait: maxWait{"0": time.Millisecond}},
		},
		Memory: llmrate.MemoryConfig{Limit: 6 * mib, Share: 1},
	})}
}

// job is one job: where it runs, how long it is ready to wait, and how it ends.
func (m *hammerMix) job(rng *rand.Rand) error {
	ctx, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	var opts []llmrate.RunOption
	switch rng.IntN(4) {
	case 0:
		opts = append(opts, llmrate.WithModels(fmt.Sprint(rng.IntN(2))))
	case 1:
		opts = append(opts, llmrate.WithMaxWait(time.Duration(rng.IntN(500))*time.Microsecond))
	case 2:
		opts = append(opts, llmrate.WithMaxWait(0))
	}
	if rng.IntN(3) == 0 {
		pause := rand.New(rand.NewPCG(rng.Uint64(), 0))
		go func() {
			hammerPause(pause)
			cancel()
		}()
	}
	_, err := m.l.Run(ctx, []string{"x", "y"}[rng.IntN(2)], func(_ context.Context, a llmrate.Attempt[string]) (usage, error) {
		model := int(a.Model[0] - '0')
		m.starts.Add(1)
		if m.running[model].Add(1) > hammerSlots[model] {
			m.t.Error("more than the limit run at a time")
		}
		defer m.running[model].Add(-1)
		hammerPause(rng)
		used := tokens(rng.Int64N(150))
		charged := used.InputTokens
		defer func() { m.charged[model].Add(charged) }()
		switch rng.IntN(7) {
		case 0:
			return usage{}, llmrate.Reject(errEnding, used)
		case 1:
			return usage{}, llmrate.Delegate(errEnding, used)
		case 2:
			charged = 100
			return usage{}, errEnding
		case 3:
			charged = 100
			panic(errEnding)
		case 4:
			charged = 100
			runtime.Goexit()
		}
		return used, nil
	}, opts...)
	return err
}

// call makes a job in a goroutine of its own, as some end theirs.
func (m *hammerMix) call(rng *rand.Rand, allowed ...error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil && r != any(errEnding) {
				m.t.Error(r)
			}
		}()
		err := m.job(rng)
		if err != nil && !slices.ContainsFunc(allowed, func(e error) bool { return errors.Is(err, e) }) {
			m.t.Error(err)
		}
	}()
	<-done
}

// snapshot checks that Stats agrees with itself: it is of one instant.
func (m *hammerMix) snapshot() {
	st := m.l.Stats()
	var memory int64
	active, waiting := map[string]int64{}, map[string]int64{}
	for _, j := range st.Jobs {
		if j.Waiting {
			waiting[j.Model]++
		} else {
			active[j.Model]++
			memory += map[string]int64{"x": 1, "y": 2}[j.JobType] * mib
		}
	}
	if st.Memory.Used != memory {
		m.t.Errorf("%d bytes in use, but the jobs hold %d", st.Memory.Used, memory)
	}
	for i, id := range []string{"0", "1"} {
		c := st.Models[id].Concurrency
		if c.Active > hammerSlots[i] || c.Active != active[id] || c.Waiting != waiting[id] {
			m.t.Errorf("%s: %+v, but %d run and %d wait", id, c, active[id], waiting[id])
		}
		for name, s := range st.Models[id].JobTypes {
			active[id] -= int64(s.InFlight)
			waiting[id] -= int64(s.Waiting)
			if s.InFlight < 0 || s.Waiting < 0 {
				m.t.Errorf("%s on %s: %+v", name, id, s)
			}
		}
		if active[id] != 0 || waiting[id] != 0 {
			m.t.Errorf("%s: the job types differ by %d and %d", id, active[id], waiting[id])
		}
	}
}

func (m *hammerMix) check() {
	m.t.Helper()
	for i, id := range []string{"0", "1"} {
		require.Equal(m.t, m.charged[i].Load(), m.l.Stats().Models[id].Custom[0].Used, "charged on %s", id)
		require.Zero(m.t, m.running[i].Load())
	}
	require.NotZero(m.t, m.starts.Load())
}

func TestHammerEverything(t *testing.T) {
	m := newHammerMix(t)
	hammer(t, 10, 150, func(rng *rand.Rand) {
		switch rng.IntN(8) {
		case 0:
			m.snapshot()
		case 1:
			_, _ = m.l.Available("x")
		case 2:
			if r, err := m.l.TryAcquire(t.Context(), "y"); err == nil {
				hammerPause(rng)
				if err := r.Settle(usage{}); err != nil {
					t.Error(err)
				}
			}
		default:
			m.call(rng, errEnding, llmrate.ErrNoCapacity, context.Canceled)
		}
	})
	m.check()
	require.Empty(t, m.l.Stats().Jobs)
	require.Zero(t, llmrate.ArmedTimers(m.l))
	require.Zero(t, m.l.Stats().Memory.Used)
	require.NoError(t, m.l.Close(t.Context()))
}

// Close in the middle of everything: once it has returned nothing runs and nothing starts.
func TestHammerClose(t *testing.T) {
	for range 20 {
		m := newHammerMix(t)
		var closed atomic.Bool
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for m.starts.Load() < 20 {
					runtime.Gosched()
				}
				if err := m.l.Close(t.Context()); err != nil {
					t.Error(err)
				}
				closed.Store(true)
				starts := m.starts.Load()
				if n := m.running[0].Load() + m.running[1].Load(); n != 0 {
					t.Errorf("%d run after Close", n)
				}
				for range 100 {
					runtime.Gosched()
				}
				if m.starts.Load() != starts {
					t.Error("a job has started after Close")
				}
			})
		}
		hammer(t, 6, 1, func(rng *rand.Rand) {
			for !closed.Load() {
				m.call(rng, errEnding, llmrate.ErrNoCapacity, context.Canceled, llmrate.ErrClosed)
			}
		})
		wg.Wait()
		m.check()
		require.Empty(t, m.l.Stats().Jobs)
		require.Zero(t, llmrate.ArmedTimers(m.l))
	}
}

// Events that call back, from many goroutines.
func TestHammerOnEventCallsBack(t *testing.T) {
	var l *limiter
	var depth atomic.Int64
	l = raceSlots(t, 2, func(ctx context.Context, _ llmrate.Event) {
		_ = l.Stats()
		if depth.Add(1) < 10 {
			if r, err := l.TryAcquire(ctx, "job"); err == nil {
				r.Release()
			}
		}
		depth.Add(-1)
	})
	hammer(t, 6, 100, func(rng *rand.Rand) {
		_, err := l.Run(t.Context(), "job", func(context.Context, llmrate.Attempt[string]) (usage, error) {
			hammerPause(rng)
			return tokens(5), nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	raceNothingHeld(t, l, "job", 2)
}
