package llmrate_test

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// Table 3 of SCENARIOS.md: memory. Of row 3.8 only what each instance does by itself; its pools are tested with the backends.

// memory is the whole of a fixed limit.
func memory(limit int64) llmrate.MemoryConfig { return llmrate.MemoryConfig{Limit: limit, Share: 1} }

func TestMemory(t *testing.T) {
	noLimits := []modelConfig{{ID: "m"}}

	scenario(t, "3.1 a part for each job type", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: noLimits, Memory: memory(100 * mib),
			JobTypes: jobTypes{
				"a": {EstimatedMemory: 10 * mib, Ratio: 0.5, FixedRatio: true},
				"b": {EstimatedMemory: 5 * mib, Ratio: 0.5, FixedRatio: true},
			},
		})
		require.Equal(t, 5, slots(l, "m", "a"))
		require.Equal(t, 10, slots(l, "m", "b"))
		require.Equal(t, 5, fill(t, l, "a"))
		require.Equal(t, 10, fill(t, l, "b"))
		require.Equal(t, llmrate.MemoryStats{Limit: 100 * mib, Budget: 100 * mib, Used: 100 * mib}, l.Stats().Memory)
	})
	scenario(t, "3.1 the parts are of all models together", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m"}, {ID: "n"}}, Memory: memory(100 * mib),
			JobTypes: jobTypes{
				"a": {EstimatedMemory: 10 * mib, Ratio: 0.5, FixedRatio: true},
				"b": {EstimatedMemory: 5 * mib, Ratio: 0.5, FixedRatio: true},
			},
		})
		acquire(t, l, "a", llmrate.WithModels("m"))
		acquire(t, l, "a", llmrate.WithModels("m"))
		require.Equal(t, 3, fill(t, l, "a", llmrate.WithModels("n")))
		requireFull(t, l, "a")
	})

	// Row 3.2: five jobs fit the memory. One of them ends after a second, in one way or another.
	fail := errors.New("failed")
	for name, end := range map[string]func(t *testing.T, l *limiter){
		"a success":        func(t *testing.T, l *limiter) { runOnce(t, l, func() (usage, error) { return tokens(1), nil }) },
		"no usage":         func(t *testing.T, l *limiter) { runOnce(t, l, func() (usage, error) { return usage{}, nil }) },
		"an error":         func(t *testing.T, l *limiter) { runOnce(t, l, func() (usage, error) { return usage{}, fail }) },
		"overage":          func(t *testing.T, l *limiter) { runOnce(t, l, func() (usage, error) { return tokens(50_000), nil }) },
		"an invalid usage": func(t *testing.T, l *limiter) { runOnce(t, l, func() (usage, error) { return tokens(-1), nil }) },
		"Reject": func(t *testing.T, l *limiter) {
			runOnce(t, l, func() (usage, error) { return usage{}, llmrate.Reject(fail, tokens(1)) })
		},
		"Delegate": func(t *testing.T, l *limiter) {
			runOnce(t, l, func() (usage, error) { return usage{}, llmrate.Delegate(fail, tokens(1)) })
		},
		"a panic":               func(t *testing.T, l *limiter) { runOnce(t, l, func() (usage, error) { panic(fail) }) },
		"the goroutine's end":   func(t *testing.T, l *limiter) { runOnce(t, l, func() (usage, error) { runtime.Goexit(); panic("no") }) },
		"Settle":                func(t *testing.T, l *limiter) { require.NoError(t, reserveOnce(t, l).Settle(tokens(1))) },
		"Settle without usage":  func(t *testing.T, l *limiter) { require.NoError(t, reserveOnce(t, l).Settle(usage{})) },
		"Release":               func(t *testing.T, l *limiter) { reserveOnce(t, l).Release() },
		"Settle, then Release":  func(t *testing.T, l *limiter) { r := reserveOnce(t, l); defer r.Release(); _ = r.Settle(tokens(1)) },
		"its context cancelled": cancelOnce,
	} {
		scenario(t, "3.2 a job waits for memory until another ends by "+name, func(t *testing.T) {
			l := newLimiter(t, config{
				Models: []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 500_000}}}, Memory: memory(50 * mib),
				JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, EstimatedMemory: 10 * mib}},
			})
			require.Equal(t, 5, slots(l, "m", "a"))
			go end(t, l)
			synctest.Wait()
			j := runJobs(t, l, "a", 5, job(10*time.Second, tokens(10_000)))
			require.Len(t, j.begins(""), 4)
			st := l.Stats()
			require.EqualValues(t, 50_000, st.Models["m"].TokensPerMinute.Used, "a refusal leaves no trace")
			require.EqualValues(t, 5, st.Models["m"].Concurrency.Active)
			require.EqualValues(t, 1, st.Models["m"].Concurrency.Waiting)
			require.Equal(t, 50*mib, st.Memory.Used)
			j.wait()
			require.Equal(t, append(repeat(4, 0), time.Second), j.times(""))
			require.Zero(t, l.Stats().Memory.Used)
		})
	}
	scenario(t, "3.2 a job waits for memory that is held on another model", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m"}, {ID: "n"}}, Memory: memory(50 * mib),
			JobTypes: jobTypes{"a": {EstimatedMemory: 10 * mib}},
		})
		j := runJobs(t, l, "a", 5, job(time.Second, tokens(1)), llmrate.WithModels("m"))
		j.run("a", 1, job(time.Second, tokens(1)), llmrate.WithModels("n"))
		j.wait()
		require.Equal(t, append(repeat(5, 0), time.Second), j.times(""))
	})

	scenario(t, "3.3 without an estimate memory never limits", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m", Limits: limits{MaxConcurrent: 1000}}}, Memory: memory(50 * mib),
			JobTypes: jobTypes{
				"a": {EstimatedMemory: 10 * mib, Ratio: 0.5, FixedRatio: true},
				"b": {Ratio: 0.5, FixedRatio: true},
			},
		})
		acquire(t, l, "a")
		acquire(t, l, "a")
		requireFull(t, l, "a")
		require.Equal(t, 500, slots(l, "m", "b"))
		require.Equal(t, 500, fill(t, l, "b"))
		require.Equal(t, 20*mib, l.Stats().Memory.Used)
	})

	scenario(t, "3.4 the budget is a share of the limit, 0.8 by default", func(t *testing.T) {
		for _, row := range []struct {
			share float64
			jobs  int
		}{{0, 8}, {0.8, 8}, {1, 10}, {0.25, 2}} {
			l := newLimiter(t, config{
				Models: noLimits, Memory: llmrate.MemoryConfig{Limit: 100 * mib, Share: row.share},
				JobTypes: jobTypes{"a": {EstimatedMemory: 10 * mib}},
			})
			require.Equal(t, row.jobs, slots(l, "m", "a"))
			require.Equal(t, row.jobs, fill(t, l, "a"))
		}
	})

	// Row 3.5: type b is idle and gives the most that a ratio may change in a cycle, 0.2.
	adapting := func(t *testing.T) *limiter {
		return newLimiter(t, config{
			Models: noLimits, Memory: memory(100 * mib),
			JobTypes: jobTypes{"a": {EstimatedMemory: 10 * mib, Ratio: 0.5}, "b": {EstimatedMemory: 10 * mib, Ratio: 0.5}},
		})
	}
	scenario(t, "3.5 the part of a type follows its ratio", func(t *testing.T) {
		l := adapting(t)
		require.Equal(t, 5, slots(l, "m", "a"))
		require.Equal(t, 5, fill(t, l, "a"))
		sleepUntil(5 * time.Second)
		acquire(t, l, "b").Release() // a job comes, so that a cycle is due
		require.InDelta(t, 0.7, l.Stats().JobTypes["a"].Ratio, 1e-9)
		require.Equal(t, 7, slots(l, "m", "a"))
		require.Equal(t, 3, slots(l, "m", "b"))
		require.Equal(t, 2, fill(t, l, "a"))
	})
	scenario(t, "3.5 a job that waits for its type's part starts when the ratio grows", func(t *testing.T) {
		l := adapting(t)
		j := runJobs(t, l, "a", 8, job(time.Hour, tokens(1)))
		require.Len(t, j.begins(""), 5)
		sleepUntil(6 * time.Second)
		require.Equal(t, append(repeat(5, 0), repeat(2, 5*time.Second)...), j.times(""))
	})

	// Row 3.6: what the model gives, and half of that by memory.
	for _, row := range []struct {
		name   string
		ratio  float64
		model  int64 // slots of the whole model
		expect int
	}{
		{"0", 0.05, 10, 2},
		{"6", 0.6, 10, 3},
		{"20", 0.5, 40, 8},
	} {
		scenario(t, "3.6 slots of "+row.name+" halved by memory, min 2, max 8", func(t *testing.T) {
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: row.model * 10_000}, MinCapacity: 2, MaxCapacity: 8}},
				Memory:   memory(row.model * 10 * mib / 2),
				JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, EstimatedMemory: 10 * mib, Ratio: row.ratio, FixedRatio: true}, "b": fixed(0, 0.4)},
			})
			require.Equal(t, row.expect, slots(l, "m", "a"))
			require.Equal(t, row.expect, fill(t, l, "a"))
		})
	}
	scenario(t, "3.6 min capacity does not override the whole budget", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m", MinCapacity: 20}}, Memory: memory(50 * mib),
			JobTypes: jobTypes{"a": {EstimatedMemory: 10 * mib, Ratio: 0.4, FixedRatio: true}, "b": fixed(0, 0.6)},
		})
		require.Equal(t, 5, fill(t, l, "a"))
	})

	scenario(t, "3.7 a job larger than the whole budget", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m"}, {ID: "n"}}, Memory: llmrate.MemoryConfig{Limit: 100 * mib},
			JobTypes: jobTypes{
				"huge":  {EstimatedMemory: 80*mib + 1, MaxWait: maxWait{"m": time.Hour, "n": time.Hour}, FixedRatio: true},
				"large": {EstimatedMemory: 80 * mib, FixedRatio: true},
			},
		})
		j := runJobs(t, l, "huge", 1, job(0, tokens(1)))
		require.Len(t, j.ends(), 1)
		err := j.ends()[0].err
		require.ErrorIs(t, err, llmrate.ErrTooLarge)
		require.NotErrorIs(t, err, llmrate.ErrNoCapacity)
		capacity, ok := errors.AsType[*llmrate.CapacityError](err)
		require.True(t, ok)
		require.Len(t, capacity.Models, 2)
		require.Equal(t, llmrate.Shortage{
			Model: "m", Reason: llmrate.ReasonTooLarge, Resource: "memory", Needed: 80*mib + 1, Limit: 80 * mib,
		}, capacity.Models[0])
		require.Empty(t, j.begins(""))

		// One that fits the budget, but not its type's half of it, may run alone.
		acquire(t, l, "large")
		requireFull(t, l, "large")
	})

	scenario(t, "3.8 two instances, each with its own memory", func(t *testing.T) {
		for _, row := range []struct {
			limit int64
			jobs  int
		}{{50 * mib, 5}, {200 * mib, 20}} {
			l := newLimiter(t, config{
				Models: []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 500_000}}}, Memory: memory(row.limit),
				JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, EstimatedMemory: 10 * mib}},
			})
			j := runJobs(t, l, "a", 50, job(time.Second, tokens(10_000)))
			require.Len(t, j.begins(""), row.jobs)
		}
	})
}

// runOnce runs a job that ends after a second.
func runOnce(t *testing.T, l *limiter, end func() (usage, error)) {
	defer func() { _ = recover() }()
	_, _ = l.Run(t.Context(), "a", func(context.Context, llmrate.Attempt[string]) (usage, error) {
		time.Sleep(time.Second)
		return end()
	})
}

// reserveOnce has a reservation for a second.
func reserveOnce(t *testing.T, l *limiter) *llmrate.Reservation[string] {
	r, err := l.Acquire(t.Context(), "a")
	if err != nil {
		t.Error(err)
	}
	time.Sleep(time.Second)
	return r
}

func cancelOnce(t *testing.T, l *limiter) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, _ = l.Run(ctx, "a", job(time.Hour, tokens(1)))
}

// A large job must not be starved by small ones of another type for more than a minute, though there is always a small
// one that fits.
func TestMemoryLargeJobIsNotStarved(t *testing.T) {
	// Five small jobs run at any time, and end one after the other. The large one needs the room of seven of the ten.
	start := func(t *testing.T, model string, patience time.Duration) (j *jobs, queued time.Duration) {
		small := jobType{EstimatedMemory: 10 * mib, Ratio: 0.5, FixedRatio: true, MaxWait: maxWait{"m": time.Hour}}
		large := jobType{EstimatedMemory: 70 * mib, Ratio: 0.5, FixedRatio: true, MaxWait: maxWait{model: patience}}
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m"}, {ID: "n"}},
			Memory:   memory(100 * mib),
			JobTypes: jobTypes{"small": small, "large": large},
		})
		j = runJobs(t, l, "small", 0, nil)
		for range 5 {
			j.run("small", 1, job(time.Second, tokens(1)))
			time.Sleep(200 * time.Millisecond)
		}
		j.run("small", 1000, job(time.Second, tokens(1)), llmrate.WithModels("m"))
		sleepUntil(1100 * time.Millisecond)
		j.run("large", 1, job(10*time.Second, tokens(1)), llmrate.WithModels(model))
		require.Empty(t, j.begins("large"))
		return j, elapsed()
	}
	smalls := func(j *jobs, from, length time.Duration) (n int) {
		for _, at := range j.times("small") {
			if at >= from && at < from+length {
				n++
			}
		}
		return n
	}
	for _, model := range []string{"m", "n"} { // that of the small ones, or another
		scenario(t, "on "+model, func(t *testing.T) {
			j, queued := start(t, model, time.Hour)
			j.wait()
			began := j.times("large")[0]
			require.LessOrEqual(t, began-queued, minute+time.Second)
			require.Equal(t, 50, smalls(j, queued, 10*time.Second), "before")
			require.Equal(t, 30, smalls(j, began, 10*time.Second), "beside it")
			require.Equal(t, 50, smalls(j, began+10*time.Second, 10*time.Second), "after")
		})
		scenario(t, "on "+model+", gives up while memory is kept for it", func(t *testing.T) {
			const patience = minute + 200*time.Millisecond
			j, queued := start(t, model, patience)
			sleepUntil(queued + patience)
			require.EqualValues(t, 5, j.l.Stats().Models["m"].Concurrency.Active, "the small ones have their part at once")
			sleepUntil(queued + patience + 20*time.Second)
			require.Empty(t, j.begins("large"))
			require.GreaterOrEqual(t, smalls(j, queued+patience, 10*time.Second), 50)
		})
	}
	scenario(t, "gives up while memory is kept for it, with a type further below its share behind", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m"}, {ID: "n", MinCapacity: 10}}, Memory: memory(100 * mib),
			JobTypes: jobTypes{
				"large":  {EstimatedMemory: 30 * mib, Ratio: 0.6, FixedRatio: true},
				"small":  {EstimatedMemory: 10 * mib, Ratio: 0.1, FixedRatio: true},
				"filler": {EstimatedMemory: 10 * mib, Ratio: 0.3, FixedRatio: true},
			},
		})
		for range 6 {
			acquire(t, l, "filler", llmrate.WithModels("n"))
		}
		acquire(t, l, "large", llmrate.WithModels("m"))
		j := runJobs(t, l, "large", 1, job(0, tokens(1)), llmrate.WithModels("m"), llmrate.WithMaxWait(minute+5*time.Second))
		sleepUntil(minute + time.Second)
		j.run("small", 1, job(0, tokens(1)), llmrate.WithModels("m"), llmrate.WithMaxWait(time.Hour))
		sleepUntil(minute + 5*time.Second)
		require.Len(t, j.begins("small"), 1)
	})
	scenario(t, "cannot run for another reason while memory is kept for it", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m", Limits: limits{TokensPerDay: 30_000}}, {ID: "n"}}, Memory: memory(100 * mib),
			JobTypes: jobTypes{
				"large":  {EstimatedTokens: 10_000, EstimatedMemory: 60 * mib, Ratio: 0.3, FixedRatio: true},
				"small":  {EstimatedTokens: 10_000, EstimatedMemory: 10 * mib, Ratio: 0.5, FixedRatio: true},
				"tokens": {EstimatedTokens: 30_000, Ratio: 0.2, FixedRatio: true},
			},
		})
		held := acquire(t, l, "small", llmrate.WithModels("n"))
		for range 4 {
			acquire(t, l, "small", llmrate.WithModels("n"))
		}
		j := runJobs(t, l, "large", 1, job(0, tokens(1)), llmrate.WithModels("m"), llmrate.WithMaxWait(2*day))
		sleepUntil(minute + time.Second)
		acquire(t, l, "tokens", llmrate.WithModels("m")) // all that m has for the day
		j.run("small", 1, job(0, tokens(1)), llmrate.WithModels("n"), llmrate.WithMaxWait(2*day))
		require.Empty(t, j.begins(""))
		held.Release()
		require.Len(t, j.begins("small"), 1)
		require.Empty(t, j.begins("large"))
	})
}

// Limit 0: the least of GOMEMLIMIT, the cgroup's limit and the machine's memory, less what the process itself needs.
func TestMemoryDetection(t *testing.T) {
	goMemLimit := func(t *testing.T, n int64) {
		before := debug.SetMemoryLimit(n)
		t.Cleanup(func() { debug.SetMemoryLimit(before) })
		runtime.GC() // garbage of other tests is not what the process needs
	}
	detecting := func(t *testing.T, cfg llmrate.MemoryConfig) *limiter {
		return newLimiter(t, config{
			Models: []modelConfig{{ID: "m"}}, Memory: cfg,
			JobTypes: jobTypes{"a": {EstimatedMemory: 90 * mib, MaxWait: maxWait{"m": time.Hour}}, "light": {Ratio: 0.001, FixedRatio: true}},
		})
	}
	scenario(t, "GOMEMLIMIT", func(t *testing.T) {
		goMemLimit(t, 512*mib)
		l := detecting(t, llmrate.MemoryConfig{})
		st := l.Stats().Memory
		require.Equal(t, 512*mib, st.Limit)
		budget := float64(512 * mib)
		require.Less(t, float64(st.Budget), 0.8*(budget-float64(mib)), "the process itself needs some")
		require.Greater(t, float64(st.Budget), 0.8*(budget-100*float64(mib)))
		require.Equal(t, int(st.Budget/(90*mib)), fill(t, l, "a"))
	})
	scenario(t, "without GOMEMLIMIT", func(t *testing.T) {
		goMemLimit(t, 1<<62)
		st := detecting(t, llmrate.MemoryConfig{Share: 0.5}).Stats().Memory
		require.Less(t, st.Limit, int64(1)<<50)
		require.Greater(t, st.Limit, 16*mib)
		require.LessOrEqual(t, st.Budget, st.Limit/2)
		require.Positive(t, st.Budget)
	})
	scenario(t, "a configured limit is not detected", func(t *testing.T) {
		goMemLimit(t, 512*mib)
		l := detecting(t, memory(1000*mib))
		require.Equal(t, llmrate.MemoryStats{Limit: 1000 * mib, Budget: 1000 * mib}, l.Stats().Memory)
		sleepUntil(minute)
		acquire(t, l, "a")
		require.Equal(t, 1000*mib, l.Stats().Memory.Limit)
	})
	for _, interval := range []time.Duration{0, minute} {
		scenario(t, "again while running, every "+max(interval, llmrate.DefaultMemoryRefreshInterval).String(), func(t *testing.T) {
			goMemLimit(t, 512*mib)
			l := detecting(t, llmrate.MemoryConfig{Share: 1, RefreshInterval: interval})
			require.Equal(t, 5, fill(t, l, "a"))

			debug.SetMemoryLimit(256 * mib)
			interval = max(interval, llmrate.DefaultMemoryRefreshInterval)
			sleepUntil(interval - 1)
			requireFull(t, l, "a")
			require.Equal(t, 512*mib, l.Stats().Memory.Limit)
			sleepUntil(interval)
			requireFull(t, l, "a")
			require.Equal(t, 256*mib, l.Stats().Memory.Limit)
			require.LessOrEqual(t, l.Stats().Memory.Budget, 256*mib)

			debug.SetMemoryLimit(768 * mib)
			sleepUntil(2 * interval)
			require.Equal(t, 3, fill(t, l, "a"))
			require.Equal(t, 768*mib, l.Stats().Memory.Limit)
		})
	}
	scenario(t, "a waiter starts when the limit grows", func(t *testing.T) {
		goMemLimit(t, 256*mib)
		l := detecting(t, llmrate.MemoryConfig{Share: 1})
		j := runJobs(t, l, "a", 6, job(time.Hour, tokens(1)))
		require.Len(t, j.begins(""), 2)
		sleepUntil(12 * time.Second)
		require.Len(t, j.begins(""), 2)
		debug.SetMemoryLimit(512 * mib)
		sleepUntil(17 * time.Second)
		require.Equal(t, append(repeat(2, 0), repeat(3, 15*time.Second)...), j.times(""))
	})
	scenario(t, "a waiter starts after the limit shrank below what is held", func(t *testing.T) {
		goMemLimit(t, 512*mib)
		l := detecting(t, llmrate.MemoryConfig{Share: 1})
		j := runJobs(t, l, "a", 4, job(10*time.Second, tokens(1)))
		require.Len(t, j.begins(""), 4)
		debug.SetMemoryLimit(256 * mib)
		sleepUntil(6 * time.Second)
		j.run("a", 4, job(10*time.Second, tokens(1)))
		j.wait()
		require.Equal(t, append(repeat(4, 0), append(repeat(2, 10*time.Second), repeat(2, 20*time.Second)...)...), j.times(""))
	})
	scenario(t, "a limit that shrinks below a waiting job does not hold up others", func(t *testing.T) {
		goMemLimit(t, 256*mib)
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m"}}, Memory: llmrate.MemoryConfig{Share: 1},
			JobTypes: jobTypes{
				"large": {EstimatedMemory: 180 * mib, Ratio: 0.5, FixedRatio: true},
				"small": {EstimatedMemory: 20 * mib, Ratio: 0.5, FixedRatio: true, MaxWait: maxWait{"m": time.Hour}},
			},
		})
		j := runJobs(t, l, "small", 5, job(70*time.Second, tokens(1)))
		require.Len(t, j.begins("small"), 5)
		j.run("large", 1, job(0, tokens(1)), llmrate.WithMaxWait(time.Hour))
		debug.SetMemoryLimit(128 * mib)
		sleepUntil(6 * time.Second)
		j.run("small", 2, job(time.Second, tokens(1)))
		require.Len(t, j.begins("small"), 5)
		sleepUntil(80 * time.Second)
		require.Len(t, j.begins("small"), 7)
		require.Empty(t, j.begins("large"))
	})
	scenario(t, "a job larger than the detected limit", func(t *testing.T) {
		goMemLimit(t, 128*mib)
		l := detecting(t, llmrate.MemoryConfig{Share: 0.5})
		_, err := l.Acquire(t.Context(), "a")
		require.ErrorIs(t, err, llmrate.ErrTooLarge)
	})
}
