package llmrate

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	aSecond = int64(time.Second)
	aMinute = int64(time.Minute)
	aDay    = int64(24 * time.Hour)
)

// unixMinute is the start of an ordinary minute, and of a day, long after 1970.
const unixMinute = 20_000 * aDay

func TestWindowFixedEdges(t *testing.T) {
	for _, tt := range []struct {
		name    string
		per     int64
		charged int64 // when 7 units are charged
		now     int64
		open    bool // the charge still counts
		at      int64
	}{
		{"same instant", aMinute, unixMinute, unixMinute, true, unixMinute},
		{"last nanosecond", aMinute, unixMinute, unixMinute + aMinute - 1, true, unixMinute},
		{"edge", aMinute, unixMinute, unixMinute + aMinute, false, unixMinute + aMinute},
		{"edge + 1 ns", aMinute, unixMinute, unixMinute + aMinute + 1, false, unixMinute + aMinute},
		{"charged in the last nanosecond", aMinute, unixMinute + aMinute - 1, unixMinute + aMinute, false, unixMinute + aMinute},
		{"windows skipped", aMinute, unixMinute + 1, unixMinute + 10*aMinute + 5, false, unixMinute + 10*aMinute},
		{"a day, last nanosecond", aDay, unixMinute + 5, unixMinute + aDay - 1, true, unixMinute},
		{"a day, edge", aDay, unixMinute + 5, unixMinute + aDay, false, unixMinute + aDay},
		{"aligned to the epoch, not to the first use", 10 * aSecond, unixMinute + 9*aSecond, unixMinute + 10*aSecond, false, unixMinute + 10*aSecond},
		{"odd length", 7, 7_000_006, 7_000_007, false, 7_000_007},
		{"odd length, inside", 7, 7_000_000, 7_000_006, true, 7_000_000},
		{"far before 1970", aMinute, -1000*aMinute + 1, -1000*aMinute + aMinute - 1, true, -1000 * aMinute},
		{"far before 1970, edge", aMinute, -1000*aMinute + 1, -1000*aMinute + aMinute, false, -999 * aMinute},
		{"across 1970", aMinute, -2, 0, false, 0},

		{"clock back 1 ns, over the edge", aMinute, unixMinute, unixMinute - 1, true, unixMinute},
		{"clock back 1 ns, inside", aMinute, unixMinute + 10, unixMinute + 9, true, unixMinute},
		{"clock back one window", aMinute, unixMinute, unixMinute - aMinute, true, unixMinute},
		{"clock back one window + 1 ns", aMinute, unixMinute, unixMinute - aMinute - 1, true, unixMinute - 2*aMinute},
		{"clock back a day", aMinute, unixMinute + 30*aSecond, unixMinute - aDay + 45*aSecond, true, unixMinute - aDay},
		{"clock back to before 1970", aMinute, unixMinute, -1, true, -aMinute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := window{max: 10, per: tt.per, at: math.MinInt64 / 2}
			w.advance(tt.charged, 1)
			w.charge(7, 1)
			closed := w.advance(tt.now, 2)
			require.Equal(t, !tt.open, closed, "advance reports whether a window was closed")
			require.Equal(t, tt.at, w.at)
			if !tt.open {
				require.Zero(t, w.used)
				require.Zero(t, w.refund(7, 1), "the window of the charge is closed")
				require.Zero(t, w.used)
				return
			}
			require.EqualValues(t, 7, w.used)
			require.True(t, w.fits(3))
			require.False(t, w.fits(4))
			require.Equal(t, tt.at+tt.per, w.fitsAt(4))
			require.Equal(t, tt.at+tt.per, w.resetsAt())
			require.EqualValues(t, math.MaxInt64, w.fitsAt(11), "never")
			require.EqualValues(t, 5, w.refund(5, 1))
			require.EqualValues(t, 2, w.used)
		})
	}
}

// A clock that went back holds the window open, but not for ever: it closes when the clock reaches its edge again.
func TestWindowClockBackThenOn(t *testing.T) {
	for _, back := range []int64{1, aSecond, aMinute, aMinute + 1, 90 * aSecond, aDay} {
		w := window{max: 10, per: aMinute}
		w.advance(unixMinute+aSecond, 1)
		w.charge(10, 1)
		now := unixMinute + aSecond - back
		w.advance(now, 2)
		require.False(t, w.fits(1), "back %d: nothing comes free", back)
		require.LessOrEqual(t, w.resetsAt()-now, 2*aMinute, "back %d: nor is it stuck", back)
		reset := w.resetsAt()
		w.advance(reset-1, 2)
		require.False(t, w.fits(1))
		w.advance(reset, 2)
		require.True(t, w.fits(10))
	}
}

func TestWindowZero(t *testing.T) {
	w := window{max: 10, per: aMinute}
	w.advance(unixMinute, 1)
	w.charge(25, 1)
	require.True(t, w.fits(0))
	require.False(t, w.fits(1))
	require.Zero(t, w.remaining())
	w.charge(0, 2)
	require.EqualValues(t, 25, w.used)
}

// A fixed window's debt ends with the window; a bucket's is refilled first.
func TestWindowDebt(t *testing.T) {
	fixed := window{max: 100, per: aMinute}
	fixed.advance(unixMinute, 1)
	fixed.charge(100, 1)
	fixed.charge(150, 2) // an excess
	require.EqualValues(t, 250, fixed.stats().Used)
	require.EqualValues(t, 0, fixed.stats().Remaining)
	require.Equal(t, unixMinute+aMinute, fixed.fitsAt(1))
	fixed.advance(unixMinute+aMinute, 3)
	require.EqualValues(t, 100, fixed.remaining())

	bucket := window{max: 100, rate: 100, per: aMinute}
	bucket.advance(unixMinute, 1)
	bucket.charge(100, 1)
	bucket.charge(150, 2)
	require.EqualValues(t, 0, bucket.remaining())
	bucket.advance(unixMinute+aMinute, 3)
	require.EqualValues(t, 150, bucket.used)
	require.EqualValues(t, 0, bucket.remaining())
	require.Equal(t, unixMinute+aMinute+30*aSecond+aMinute/100, bucket.fitsAt(1))
	bucket.advance(unixMinute+aMinute+30*aSecond, 3)
	require.False(t, bucket.fits(1))
	bucket.advance(unixMinute+aMinute+30*aSecond+aMinute/100, 3)
	require.True(t, bucket.fits(1))
	require.Equal(t, unixMinute+2*aMinute+30*aSecond, bucket.resetsAt())
	bucket.advance(unixMinute+2*aMinute+30*aSecond, 3)
	require.EqualValues(t, 100, bucket.remaining())
	bucket.advance(unixMinute+10*aMinute, 3)
	require.EqualValues(t, 100, bucket.remaining(), "a bucket never holds more than its size")
}

// fitsAt is the first nanosecond at which the units fit, whatever the numbers.
func TestWindowBucketFitsAtIsExact(t *testing.T) {
	for _, tt := range []struct{ max, rate, per, used, n int64 }{
		{100, 100, aMinute, 100, 1},
		{100, 7, aMinute, 100, 100},
		{3, 7, aMinute + 1, 3, 2},
		{13, 997, 1_000_003, 13, 13},
		{1, 1, aDay, 1, 1},
		{MaxAmount, MaxAmount, aMinute, MaxAmount, 1},
		{MaxAmount, 1, 366 * aDay, MaxAmount, 1},
		{10, MaxAmount, 1_000_000, 10, 1},
		{500, 333, 10 * aSecond, 777, 123},
	} {
		w := window{max: tt.max, rate: tt.rate, per: tt.per}
		w.advance(unixMinute, 1)
		w.charge(tt.used, 1)
		for range 3 { // the second and third time with a fraction of a unit drained
			at := w.fitsAt(tt.n)
			require.Greater(t, at, w.at, "%+v", tt)
			before, after := w, w
			before.lows, after.lows = append([]low(nil), w.lows...), append([]low(nil), w.lows...)
			before.advance(at-1, 2)
			require.False(t, before.fits(tt.n), "%+v: fits a nanosecond before fitsAt", tt)
			after.advance(at, 2)
			require.True(t, after.fits(tt.n), "%+v: does not fit at fitsAt", tt)
			w.advance(w.at+(at-w.at)/3, 2)
		}
	}
}

// A bucket drains by exactly rate units in each period, however often somebody looks.
func TestWindowBucketDrainsExactly(t *testing.T) {
	for _, tt := range []struct{ rate, per, step int64 }{
		{7, aMinute, 1_000_003},
		{997, 1_000_003, 17},
		{500_000, aMinute, 999_999_937},
		{1, aDay, 1_234_567_891_011},
		{MaxAmount - 1, aMinute, 7_777_777},
	} {
		w := window{max: MaxAmount, rate: tt.rate, per: tt.per}
		w.advance(unixMinute, 1)
		w.charge(MaxAmount, 1)
		for w.at < unixMinute+tt.per {
			w.advance(min(w.at+tt.step, unixMinute+tt.per), 2)
		}
		require.Equal(t, MaxAmount-tt.rate, w.used, "%+v", tt)
		require.Zero(t, w.frac, "%+v", tt)
	}
}

func TestWindowBucketClockBack(t *testing.T) {
	for _, tt := range []struct {
		back   int64
		onward int64 // the earliest moment after the clock went back at which a tenth has drained
	}{
		{1, 1 + 6*aSecond},
		{aSecond, 7 * aSecond},
		{aMinute, 66 * aSecond},
		{aMinute + 1, 6 * aSecond},
		{aDay, 6 * aSecond},
	} {
		w := window{max: 100, rate: 100, per: aMinute}
		w.advance(unixMinute, 1)
		w.charge(100, 1)
		back := unixMinute - tt.back
		w.advance(back, 2)
		require.EqualValues(t, 100, w.used, "back %d: nothing comes free", tt.back)
		w.advance(back+tt.onward-1, 2)
		require.EqualValues(t, 91, w.used, "back %d", tt.back)
		w.advance(back+tt.onward, 2)
		require.EqualValues(t, 90, w.used, "back %d", tt.back)
	}
}

func TestWindowBucketRefund(t *testing.T) {
	type step struct {
		at     int64 // since the start
		charge int64 // under the number of the step, counted from 1
		refund int64
		of     uint64
		used   int64 // afterwards
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"at once", []step{
			{at: 0, charge: 90, used: 90},
			{at: 0, refund: 60, of: 1, used: 30},
		}},
		{"after a part has drained", []step{
			{at: 0, charge: 90, used: 90},
			{at: 30 * aSecond, refund: 20, of: 1, used: 20},
		}},
		{"time has given back more than the rest", []step{
			{at: 0, charge: 90, used: 90},
			{at: 30 * aSecond, refund: 60, of: 1, used: 0},
		}},
		{"the bucket was full in between: time has given back everything", []step{
			{at: 0, charge: 90, used: 90},
			{at: 60 * aSecond, charge: 90, used: 90},
			{at: 60 * aSecond, refund: 90, of: 1, used: 90},
		}},
		{"the bucket was nearly full in between: only what it lacked then", []step{
			{at: 0, charge: 90, used: 90},
			{at: 48 * aSecond, charge: 80, used: 90},
			{at: 48 * aSecond, refund: 90, of: 1, used: 80},
			{at: 48 * aSecond, refund: 80, of: 2, used: 0},
		}},
		{"a later charge is refunded first", []step{
			{at: 0, charge: 40, used: 40},
			{at: 0, charge: 40, used: 80},
			{at: 24 * aSecond, refund: 40, of: 2, used: 0},
			{at: 24 * aSecond, refund: 40, of: 1, used: 0},
		}},
		{"a later refund leaves less for an earlier one", []step{
			{at: 0, charge: 20, used: 20},
			{at: 0, charge: 60, used: 80},
			{at: 24 * aSecond, refund: 40, of: 2, used: 0}, // so that the bucket was full then
			{at: 24 * aSecond, charge: 50, used: 50},
			{at: 24 * aSecond, refund: 20, of: 1, used: 50},
		}},
		{"twice takes no more than the bucket has held since", []step{
			{at: 0, charge: 30, used: 30},
			{at: 0, charge: 50, used: 80},
			{at: 0, refund: 30, of: 1, used: 50},
			{at: 0, refund: 30, of: 1, used: 50},
		}},
		{"a fraction of a unit is not refunded: time may have given it back", []step{
			{at: 0, charge: 10, used: 10},
			{at: 5*aSecond + 700*int64(time.Millisecond), charge: 90, used: 91}, // 0.5 of the first 10 are left
			{at: 5*aSecond + 700*int64(time.Millisecond), refund: 10, of: 1, used: 91},
			{at: 6 * aSecond, used: 90},
			{at: 6*aSecond + 599*int64(time.Millisecond), used: 90},
			{at: 6*aSecond + 600*int64(time.Millisecond), used: 89},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := window{max: 100, rate: 100, per: aMinute}
			for i, s := range tt.steps {
				number := uint64(i + 1)
				w.advance(unixMinute+s.at, number)
				w.charge(s.charge, number)
				w.refund(s.refund, s.of)
				require.Equal(t, s.used, w.used, "step %d", number)
			}
		})
	}
}

// However many charges are open, a bucket remembers a bounded number of lows, and forgetting makes refunds smaller, not
// larger.
func TestWindowBucketMemoryIsBounded(t *testing.T) {
	w := window{max: 10_000, rate: 10_000, per: aMinute}
	w.advance(unixMinute, 1)
	for i := range int64(10_000) {
		w.advance(unixMinute+i*aSecond/1000, uint64(i+1))
		w.charge(2, uint64(i+1))
		require.LessOrEqual(t, len(w.lows), fineLows+coarseLows)
	}
	before := w.used
	refunded := int64(0)
	for i := range uint64(10_000) {
		refunded += w.refund(1, i+1)
	}
	require.Equal(t, before-refunded, w.used)
	require.GreaterOrEqual(t, w.used, int64(10_000-10_000/6-1), "what the jobs did use less what has drained")
}
