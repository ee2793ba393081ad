package llmrate_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// TestMain fails if a goroutine of this package outlives its tests.
func TestMain(m *testing.M) {
	code := m.Run()
	if fuzzing := flag.Lookup("test.fuzz"); code == 0 && (fuzzing == nil || fuzzing.Value.String() == "") {
		if left := leakedGoroutines(5 * time.Second); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "%d goroutines outlive the tests, the first is:\n%s\n", len(left), left[0])
			code = 1
		}
	}
	os.Exit(code)
}

// goroutineStacks are the stacks of all goroutines, the caller's first.
func goroutineStacks() [][]byte {
	buf := make([]byte, 1<<20)
	for {
		if n := runtime.Stack(buf, true); n < len(buf) {
			return bytes.Split(buf[:n], []byte("\n\n"))
		}
		buf = make([]byte, 2*len(buf))
	}
}

// leakedGoroutines are the stacks of all other goroutines that run code of this package. Those that are about to end
// get some time for it.
func leakedGoroutines(patience time.Duration) (left [][]byte) {
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		left = left[:0]
		for _, stack := range goroutineStacks()[1:] {
			if bytes.Contains(stack, []byte("github.com/llmrate/llmrate")) {
				left = append(left, stack)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// bubbleGoroutines counts the other goroutines of a test in virtual time, once all have come to rest.
func bubbleGoroutines(t *testing.T) (n int) {
	t.Helper()
	synctest.Wait()
	stacks := goroutineStacks()
	bubble := regexp.MustCompile(`synctest bubble \d+\]`).Find(stacks[0])
	require.NotEmpty(t, bubble)
	for _, stack := range stacks[1:] {
		if bytes.Contains(stack, bubble) && !bytes.Contains(stack, []byte("testing/synctest.")) {
			n++
		}
	}
	return n
}

// The checks above must be able to find something.
func TestLeakChecksFindLeaks(t *testing.T) {
	found := func() bool { // others of earlier tests may be about to end
		return slices.ContainsFunc(leakedGoroutines(0), func(stack []byte) bool {
			return bytes.Contains(stack, []byte("created by github.com/llmrate/llmrate_test.TestLeakChecksFindLeaks"))
		})
	}
	stop, done := make(chan struct{}), make(chan struct{})
	require.False(t, found())
	go func() {
		defer close(done)
		<-stop
	}()
	require.True(t, found())
	close(stop)
	<-done

	synctest.Test(t, func(t *testing.T) {
		require.Zero(t, bubbleGoroutines(t))
		stop := make(chan struct{})
		for range 3 {
			go func() { <-stop }()
		}
		require.Equal(t, 3, bubbleGoroutines(t))
		close(stop)
		require.Zero(t, bubbleGoroutines(t))
	})
}

// leakConfig uses everything that could need looking after: windows of every kind, memory that is detected, ratios that
// adapt, two models.
func leakConfig() config {
	return config{
		Models: []modelConfig{
			{ID: "a", Limits: limits{MaxConcurrent: 2, RequestsPerMinute: 100, TokensPerDay: 100_000}},
			{ID: "b", Limits: limits{MaxConcurrent: 2, TokensPerMinute: 100_000, Refill: llmrate.Continuous}},
		},
		JobTypes: jobTypes{"x": {EstimatedTokens: 100, EstimatedMemory: 1}, "y": {EstimatedTokens: 100}},
		OnEvent:  func(context.Context, llmrate.Event) {},
	}
}

// Without a backend there is no goroutine while nobody waits, and no timer either (DESIGN 3.12).
func TestLeakNothingWhileNobodyWaits(t *testing.T) {
	scenario(t, "goroutines", func(t *testing.T) {
		check := func(when string) {
			t.Helper()
			require.Zero(t, bubbleGoroutines(t), when)
		}
		var all []*limiter
		for range 100 {
			l, err := llmrate.New(t.Context(), leakConfig())
			require.NoError(t, err)
			all = append(all, l)
		}
		check("new")
		for _, l := range all {
			_, err := l.Run(t.Context(), "x", job(0, tokens(10)))
			require.NoError(t, err)
			r, err := l.Acquire(t.Context(), "y")
			require.NoError(t, err)
			defer r.Release()
		}
		check("running")
		for _, l := range all {
			_ = l.Stats()
			require.Zero(t, llmrate.ArmedTimers(l))
		}
		time.Sleep(time.Hour)
		check("idle for an hour")
		for _, l := range all {
			require.Zero(t, llmrate.ArmedTimers(l))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			require.ErrorIs(t, l.Close(ctx), context.DeadlineExceeded) // y still runs
			cancel()
		}
		check("closed in vain")
	})

	// Whatever ended the wait: then no timer is armed and only the waiters' own goroutines have come and gone.
	for name, c := range map[string]struct {
		end func(l *limiter, held []*llmrate.Reservation[string], cancel context.CancelFunc)
	}{
		"granted": {func(_ *limiter, held []*llmrate.Reservation[string], _ context.CancelFunc) {
			for _, r := range held {
				r.Release()
			}
		}},
		"cancelled": {func(_ *limiter, _ []*llmrate.Reservation[string], cancel context.CancelFunc) { cancel() }},
		"timed out": {func(*limiter, []*llmrate.Reservation[string], context.CancelFunc) { time.Sleep(30 * time.Second) }},
		"closed": {func(l *limiter, _ []*llmrate.Reservation[string], _ context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = l.Close(ctx)
		}},
	} {
		scenario(t, "after a wait that was "+name, func(t *testing.T) {
			l := newLimiter(t, leakConfig())
			var held []*llmrate.Reservation[string]
			for range 4 {
				held = append(held, acquire(t, l, "x", llmrate.WithMaxWait(0)))
				if len(held) == 2 {
					break // the share of x on both
				}
			}
			held = append(held, acquire(t, l, "y"), acquire(t, l, "y"))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for i := range 10 {
				go func() {
					r, err := l.Acquire(ctx, []string{"x", "y"}[i%2], llmrate.WithMaxWait(time.Duration(1+i%3)*time.Second))
					if err == nil {
						r.Release()
					}
				}()
				synctest.Wait()
			}
			require.Equal(t, 10, bubbleGoroutines(t), "one goroutine each, the callers' own")
			c.end(l, held, cancel)
			require.Zero(t, bubbleGoroutines(t))
			require.Zero(t, llmrate.ArmedTimers(l))
			require.Zero(t, l.Stats().JobTypes["x"].Waiting+l.Stats().JobTypes["y"].Waiting)
		})
	}
}

// A limiter that is no longer used goes away with all that it holds, closed or not.
func TestLeakLimiterIsCollected(t *testing.T) {
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("closed %t", closed), func(t *testing.T) {
			collected := make(chan struct{})
			func() {
				l, err := llmrate.New(t.Context(), leakConfig())
				require.NoError(t, err)
				runtime.AddCleanup(l, func(c chan struct{}) { close(c) }, collected)
				held, err := l.TryAcquire(t.Context(), "x", llmrate.WithModels("a"))
				require.NoError(t, err)
				held2, err := l.TryAcquire(t.Context(), "y", llmrate.WithModels("a"))
				require.NoError(t, err)
				_, err = l.Acquire(t.Context(), "x", llmrate.WithModels("a"), llmrate.WithMaxWait(time.Millisecond)) // arms a timer
				require.ErrorIs(t, err, llmrate.ErrNoCapacity)
				held.Release()
				held2.Release()
				if closed {
					require.NoError(t, l.Close(t.Context()))
				}
			}()
			for deadline := time.Now().Add(10 * time.Second); ; {
				runtime.GC()
				select {
				case <-collected:
					return
				default:
				}
				require.True(t, time.Now().Before(deadline), "something still refers to it")
			}
		})
	}
}
