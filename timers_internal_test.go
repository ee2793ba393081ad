package llmrate

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// ArmedTimers counts the timers that l has armed, and stops them: it is for the end of a test.
func ArmedTimers[M ~string](l *Limiter[M]) (n int) {
	for _, p := range l.core.pools {
		p.mu.Lock()
		if p.timer != nil && p.timer.Stop() {
			n++
		}
		p.timerAt = 0
		p.mu.Unlock()
	}
	return n
}

// A firing that comes late, when the timer has been set again already, must not make the pool forget that it is set.
func TestTimerLateFiringLeavesNoneArmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(t.Context(), Config[string]{
			Models:   []ModelConfig[string]{{ID: "m", Limits: Limits{MaxConcurrent: 1}}},
			JobTypes: map[string]JobType[string]{"job": {MaxWait: map[string]time.Duration{"m": time.Hour}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		held, err := l.TryAcquire(t.Context(), "job")
		if err != nil {
			t.Fatal(err)
		}
		started := make(chan *Reservation[string])
		go func() {
			r, err := l.Acquire(t.Context(), "job")
			if err != nil {
				t.Error(err)
			}
			started <- r
		}()
		synctest.Wait()
		p := l.core.pools[0]
		p.mu.Lock()
		p.maxConcurrent = 2 // room that nobody has been told of
		p.mu.Unlock()
		p.onTimer()
		(<-started).Release()
		held.Release()
		if n := ArmedTimers(l); n != 0 {
			t.Errorf("%d timers are armed and nobody waits", n)
		}
	})
}

// A waiter whom only another job can release needs no timer. One set for the end of time would keep a test in virtual
// time from ever being found to be stuck, and would fire over and over once it is reached.
func TestTimerNoneForNever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(t.Context(), Config[string]{
			Models:   []ModelConfig[string]{{ID: "m", Limits: Limits{MaxConcurrent: 1}}},
			JobTypes: map[string]JobType[string]{"job": {}},
		})
		if err != nil {
			t.Fatal(err)
		}
		held, err := l.TryAcquire(t.Context(), "job")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			r, err := l.Acquire(t.Context(), "job", WithMaxWait(math.MaxInt64))
			if err != nil {
				t.Error(err)
			}
			r.Release()
		}()
		synctest.Wait()
		if n := ArmedTimers(l); n != 0 {
			t.Errorf("%d timers are armed for a waiter whom no time can help", n)
		}
		held.Release()
		synctest.Wait()
	})
}
