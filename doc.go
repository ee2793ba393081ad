// Package llmrate is a rate limiter for calls to large language models.
//
// It reserves what a call is estimated to use, in every limit of a model at once, before the call starts, and corrects
// the reservation to what was really used when it ends, however it ends. When a model has no room, the call waits, or
// moves on to the next model.
//
// # Start here
//
// Describe the models and their [Limits], in order of preference, and the classes of calls as a [JobType] each. Make
// one [Limiter] with [New] and share it: all its methods are safe for concurrent use.
//
// Then pass every call through [Limiter.Run], or [Do] if it returns a value. Your function gets an [Attempt], which
// names the model to call, and returns the [Usage] that the provider reported. A complete program is in the README.
//
// [Limiter.Acquire] is for what does not fit in a function, such as a stream that is handed on: it returns a
// [Reservation], to be ended with [Reservation.Settle] or [Reservation.Release]. [Limiter.TryAcquire] is the same
// without waiting. [Limiter.Close] ends it all: waiters get [ErrClosed], running jobs may finish.
//
// # Units
//
// Requests and tokens are whole numbers from 0 to [MaxAmount], memory is in bytes, prices are in USD per million tokens, and
// shares are from 0 to 1. A limit of 0 means not limited; an estimate of 0 reserves nothing. InputTokens never include
// cached tokens: see [Usage] for how to map a provider's report.
//
// # Limits and windows
//
// A limit counts requests, tokens, input tokens or output tokens in a window; MaxConcurrent counts running jobs. By
// default windows are fixed: calendar minutes and days in UTC, empty again at their edge. [Continuous] makes them token
// buckets, which refill all the time; [Refill.WithBurst] says how much such a bucket holds. A [CustomLimit] has a window of
// any length and its own refill.
//
// ModelConfig.CountTokens says what counts against the token limits, for providers that leave out or weigh some tokens.
//
// # How a job ends
//
// The function that you pass to [Limiter.Run] decides, by what it returns:
//
//   - usage and nil: the reservation is corrected to the usage. What was not used is free again at once if its window is
//     still open, an excess is charged;
//   - an error and the zero [Usage]: it may have used anything, so the estimate stays charged;
//   - an error and a usage: corrected to that usage. Return one only if you know the tokens, too;
//   - [Reject]: corrected to the usage given there; the job fails with the error given there;
//   - [Delegate]: corrected in the same way; the job goes on to its next model;
//   - nothing, because it panics or ends its goroutine: the estimate stays charged, and the panic goes on.
//
// The concurrency slot and the memory come back in every case. The zero Usage, with a nil error or in Settle, Reject and
// Delegate, means that nothing was used, and refunds everything. If a call succeeds without a report of its usage, return
// [ErrUsageUnknown]: the estimate stays charged, and Run returns nil.
//
// # Waiting
//
// A job waits for one model at a time, in the order of the configuration, for as long as JobType.MaxWait or [WithMaxWait]
// says. The default is to the next minute and five seconds more, so that the next window can be used; set 0 to move on
// at once. Jobs of one type are served strictly in order on each model; between types, the one furthest below its
// share comes first. A job that can never fit a model, because its estimate is above a limit, skips it at once.
//
// If the context ends, the job ends with [context.Cause] of it. If its deadline comes before any model can have room, the
// job fails at once; if only the first can have none by then, and the wait there would outlast the deadline, the job moves
// on at once.
//
// # Shares
//
// Each job type has a ratio of every model, so that none starves another. Ratios follow the load, unless FixedRatio is set:
// see [RatioConfig]. A type with nothing charged may always start one job. MinCapacity and MaxCapacity bound the
// number of a type's jobs on a model.
//
// JobType.EstimatedMemory keeps all running jobs within a memory budget, whatever the models allow: see [MemoryConfig].
//
// # Errors
//
// Test with [errors.Is] for [ErrNoCapacity], [ErrTooLarge], [ErrClosed], [ErrUnknownJobType], [ErrUnknownModel] and
// [ErrSettled]. [ErrNoCapacity] and [ErrTooLarge] come as a [*CapacityError], which says what each model lacked and when
// to try again. An argument or a field that is wrong is a [*FieldError]; [Config.Validate] reports all of them at once.
// The function's own error comes back as it is; several from Delegate come joined.
//
// # Watching
//
// [Limiter.Stats] is a snapshot of windows, shares, queues and jobs, consistent at one instant. Config.OnEvent gets an
// [Event] when a job queues, starts, moves to the next model or ends, when it used more than estimated, and when
// ratios change. Config.Logger gets a few lines about the configuration; without it nothing is ever printed.
//
// # Guarantees
//
// As long as no job uses more than its estimate, what is charged to a model, reservations included, is never above any
// of its limits. A job that uses more exceeds the limit by its excess, and no job that needs the same resource starts until that is made up. Concurrency is
// never above its limit. Every reservation is settled exactly once. A job that is refused or gives up has charged nothing.
//
// A limiter runs no goroutine of its own while nobody waits.
//
// The limits hold for one process: two limiters with the same limits may together use twice as much, and a restarted
// process has forgotten what it used. [Backend] is the seam for sharing limits in a fleet; no implementation of it is
// published yet.
package llmrate
