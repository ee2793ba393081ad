package llmrate

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// rebalanceTypes makes job types of which the named ones are fixed.
func rebalanceTypes(n int, fixed ...int) []*jobType {
	types := make([]*jobType, n)
	for i := range types {
		types[i] = &jobType{index: i, fixed: slices.Contains(fixed, i)}
	}
	return types
}

func rebalanceSum(ratios []float64) (sum float64) {
	for _, r := range ratios {
		sum += r
	}
	return sum
}

func TestRebalance(t *testing.T) {
	cfg := RatioConfig{}.withDefaults()
	const third = 1.0 / 3
	for _, c := range []struct {
		name          string
		ratios, loads []float64
		fixed         []int
		next          []float64 // nil: nothing changes
	}{
		{name: "8.1 one busy, two nearly idle", ratios: []float64{third, third, third}, loads: []float64{0.97, 0.15, 0.15},
			next: []float64{third + 0.2, third - 0.1, third - 0.1}},
		{name: "8.2 a fixed type in between", ratios: []float64{0.35, 0.35, 0.3}, loads: []float64{0.95, 0.17, 0.33}, fixed: []int{2},
			next: []float64{0.35 + 0.35*(1-0.17/0.3), 0.35 * 0.17 / 0.3, 0.3}},
		{name: "8.2 a fixed type neither gives", ratios: []float64{0.5, 0.3, 0.2}, loads: []float64{0.95, 0.5, 0}, fixed: []int{2}},
		{name: "8.2 nor receives", ratios: []float64{0.5, 0.3, 0.2}, loads: []float64{0.1, 0.5, 1}, fixed: []int{2}},
		{name: "8.3 all high", ratios: []float64{0.5, 0.3, 0.2}, loads: []float64{0.71, 1, 5}},
		{name: "8.3 all low", ratios: []float64{0.5, 0.3, 0.2}, loads: []float64{0, 0.1, 0.29}},
		{name: "8.3 all in the middle", ratios: []float64{0.5, 0.3, 0.2}, loads: []float64{0.3, 0.5, 0.7}},
		{name: "8.3 the bounds are in the middle", ratios: []float64{0.5, 0.5}, loads: []float64{0.3, 1}},
		{name: "8.3 the upper one too", ratios: []float64{0.5, 0.5}, loads: []float64{0, 0.7}},
		{name: "8.4 one flexible type, busy", ratios: []float64{0.5, 0.5}, loads: []float64{1, 0}, fixed: []int{1}},
		{name: "8.4 one flexible type, idle", ratios: []float64{0.5, 0.5}, loads: []float64{0, 1}, fixed: []int{1}},
		{name: "8.5 a donor keeps the smallest ratio", ratios: []float64{0.89, 0.11}, loads: []float64{1, 0}, next: []float64{0.99, 0.01}},
		{name: "8.5 a donor at the smallest ratio", ratios: []float64{0.99, 0.01}, loads: []float64{1, 0}},
		{name: "8.5 a donor configured below the smallest ratio", ratios: []float64{0.995, 0.005}, loads: []float64{1, 0}},
		{name: "a large donor gives no more than the largest change", ratios: []float64{0.1, 0.9}, loads: []float64{1, 0}, next: []float64{0.3, 0.7}},
		{name: "nor does a receiver get more", ratios: []float64{0.1, 0.45, 0.45}, loads: []float64{1, 0, 0}, next: []float64{0.3, 0.35, 0.35}},
		{name: "receivers share equally", ratios: []float64{0.1, 0.2, 0.7}, loads: []float64{1, 0.8, 0}, next: []float64{0.2, 0.3, 0.5}},
		{name: "a donor goes to the low load", ratios: []float64{0.5, 0.5}, loads: []float64{0.9, 0.24}, next: []float64{0.6, 0.4}},
		{name: "ratios that sum to less than 1", ratios: []float64{0.2, 0.2}, loads: []float64{1, 0}, next: []float64{0.39, 0.01}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ratios, loads := slices.Clone(c.ratios), slices.Clone(c.loads)
			next, changed := rebalance(ratios, loads, rebalanceTypes(len(ratios), c.fixed...), cfg)
			require.Equal(t, c.ratios, ratios, "the argument is not written to")
			require.Equal(t, c.loads, loads)
			if c.next == nil {
				require.False(t, changed)
				require.Equal(t, c.ratios, next)
				return
			}
			require.True(t, changed)
			require.InDeltaSlice(t, c.next, next, 1e-12)
			require.InDelta(t, rebalanceSum(c.ratios), rebalanceSum(next), 1e-12)
		})
	}
}

// rebalanceCheck holds one cycle against everything that is promised about it.
func rebalanceCheck(t *testing.T, ratios, loads []float64, types []*jobType, cfg RatioConfig) (next []float64) {
	t.Helper()
	const tiny = 1e-9
	next, changed := rebalance(ratios, loads, types, cfg)
	require.Len(t, next, len(ratios))
	require.InDelta(t, rebalanceSum(ratios), rebalanceSum(next), tiny, "sum")
	low, high := false, false
	for i, typ := range types {
		change := next[i] - ratios[i]
		require.False(t, math.IsNaN(next[i]) || math.IsInf(next[i], 0), "type %d: %g", i, next[i])
		require.LessOrEqual(t, math.Abs(change), cfg.MaxChange+tiny, "type %d changes too much", i)
		require.GreaterOrEqual(t, next[i], min(ratios[i], cfg.MinRatio)-tiny, "type %d falls too low", i)
		switch {
		case typ.fixed:
			require.Equal(t, ratios[i], next[i], "type %d is fixed", i)
		case loads[i] < cfg.LowLoad:
			require.LessOrEqual(t, change, 0.0, "type %d has low load", i)
			low = low || ratios[i] > cfg.MinRatio+tiny
		case loads[i] > cfg.HighLoad:
			require.GreaterOrEqual(t, change, 0.0, "type %d has high load", i)
			high = true
		default:
			require.Equal(t, ratios[i], next[i], "type %d is in the middle", i)
		}
		if !changed {
			require.Equal(t, ratios[i], next[i])
		}
	}
	if !low || !high {
		require.False(t, changed, "nobody gives or nobody receives")
	}
	return next
}

func TestRebalanceRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	between := func(low, high float64) float64 { return low + (high-low)*rng.Float64() }
	changes := 0
	for range 500 {
		n := 2 + rng.IntN(7)
		types, ratios, loads := rebalanceTypes(n), make([]float64, n), make([]float64, n)
		for i := range types {
			types[i].fixed = rng.IntN(4) == 0
			ratios[i] = between(0.001, 1)
		}
		total := rebalanceSum(ratios) / between(0.5, 1)
		for i := range ratios {
			ratios[i] /= total
		}
		cfg := RatioConfig{}.withDefaults()
		if rng.IntN(2) == 0 {
			cfg.LowLoad = between(0.01, 0.6)
			cfg.HighLoad = between(cfg.LowLoad, 1)
			cfg.MaxChange = between(0.001, 1)
			cfg.MinRatio = between(0, 0.2)
		}
		for range 10 { // cycles under changing load
			for i := range loads {
				loads[i] = []float64{0, between(0, 1), between(0, 1), between(0.5, 3), cfg.LowLoad, cfg.HighLoad}[rng.IntN(6)]
			}
			next := rebalanceCheck(t, ratios, loads, types, cfg)
			if !slices.Equal(next, ratios) {
				changes++
			}
			ratios = next
		}
	}
	require.Greater(t, changes, 500, "the check needs something to check")
}
