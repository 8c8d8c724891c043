// Package bench measures starts of one image in several ways, side by side.
//
// A [Mode] is a way of starting the image, such as one of thaw's ([NewThaw]).
// [Run] goes through all modes once a run, so that whatever changes on the
// machine meanwhile concerns all of them, and begins each run with another one.
// Before a cold start the mode removes what it has of the image, the page cache
// is dropped, and it is proven that nothing is left; see [Residue]. What comes
// out is a [Result]: times to ready with their spread, the first and second read
// of a file and of pages, bytes and requests, and a floor to compare them with.
//
// Everything is measured from outside: other programs are processes or APIs,
// thaw is its own command line. The registry is another process as well.
//
// The package deliberately does not tune what it measures, and throws no run
// away: it says when the runs are too noisy.
package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Way starts the image, on a machine or in a state directory of its own. Its
// methods are called one after the other.
type Way interface {
	// Prepare does, once, what is not timed.
	Prepare(ctx context.Context) error
	// Reset makes things as they are to be before a start: nothing of the image
	// is here, or, of a warm way, all. It returns the directories in which
	// something of the image could lie.
	Reset(ctx context.Context) (dirs []string, err error)
	// Start starts a container and returns when it is ready. After an error
	// nothing runs.
	Start(ctx context.Context) (*Started, error)
	// Close removes all that the way has made. Prepare need not have succeeded.
	Close(ctx context.Context) error
}

// Started is a container that is ready.
type Started struct {
	Ready time.Duration // since the command to start it was given
	Root  string        // its root directory, as this process sees it
	Image Image         // zero where the way does not say
	Cost  *Cost         // by the way's own count; nil where it has none
	// Stop ends the container; of a cold way nothing is left that could be in the
	// way of another.
	Stop func(ctx context.Context) error
}

// Image is what was started.
type Image struct {
	Manifest   string
	LayerBytes int64 // compressed
}

// Cost is what a start has fetched.
type Cost struct{ Bytes, Requests int64 }

// Mode is a way with its name.
type Mode struct {
	Name  string
	Way   Way
	Warm  bool // everything is here: nothing is removed, no cache dropped
	Eager bool // all of the image is brought before the container starts
	// Needs is the way without anything that fetches what nobody reads, to find
	// out how little a start needs. Nil: what the image has.
	Needs Way
	// Registry counts what the mode fetches; nil where it is not ours.
	Registry *Registry
}

// Options says what to measure.
type Options struct {
	Modes []Mode // one of them warm, for the floor
	Runs  int
	Read  string   // file of the image to read, or empty
	Pages []string // URLs to get
	Line  *Line    // nil: not known, and no floor
	Limit float64  // of a mode's spread: see [Noise]
	// Progress is told what was done.
	Progress func(format string, args ...any)
}

// cleanTimeout bounds cleaning up after an interrupt.
const cleanTimeout = time.Minute

// Run measures. On an error, and when the context ends, everything is cleaned up
// before it returns.
func Run(ctx context.Context, opts Options) (result *Result, err error) {
	b := &bench{Options: opts, result: newResult(opts), needs: map[string]int64{}}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		for _, m := range opts.Modes {
			err = errors.Join(err, m.Way.Close(clean))
			if m.Needs != nil {
				err = errors.Join(err, m.Needs.Close(clean))
			}
		}
	}()
	for _, m := range opts.Modes {
		if err := b.prepare(ctx, m); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", m.Name, err)
		}
	}
	for run := range opts.Runs {
		for i := range opts.Modes {
			m := opts.Modes[(run+i)%len(opts.Modes)]
			if err := b.measure(ctx, m); err != nil {
				return nil, fmt.Errorf("run %d of %s: %w", run+1, m.Name, err)
			}
			opts.Progress("run %d of %d: %s: ready after %.0f ms", run+1, opts.Runs, m.Name, b.result.Modes[m.Name].last())
		}
	}
	b.result.finish(opts, b.needs)
	return b.result, nil
}

type bench struct {
	Options
	result *Result
	needs  map[string]int64 // bytes that a start needed, by mode
}

// prepare does what is not timed, and finds out what a start needs.
func (b *bench) prepare(ctx context.Context, m Mode) error {
	b.Progress("prepare %s", m.Name)
	if err := m.Way.Prepare(ctx); err != nil {
		return err
	}
	if m.Needs == nil {
		return nil
	}
	if err := m.Needs.Prepare(ctx); err != nil {
		return err
	}
	m.Way, m.Needs = m.Needs, nil
	s, _, cost, err := b.start(ctx, m)
	if err != nil {
		return err
	}
	if cost != nil {
		b.needs[m.Name] = cost.Bytes
	}
	return s.Stop(ctx)
}

// start makes the node as the mode wants it, proves it, and starts a container.
func (b *bench) start(ctx context.Context, m Mode) (*Started, Residue, *Cost, error) {
	var left Residue
	dirs, err := m.Way.Reset(ctx)
	if err != nil {
		return nil, left, nil, err
	}
	if !m.Warm {
		if err := DropCaches(ctx); err != nil {
			return nil, left, nil, err
		}
	}
	if m.Registry != nil { // its disk is not what is measured
		if err := m.Registry.Warm(ctx); err != nil {
			return nil, left, nil, err
		}
	}
	if left, err = MeasureResidue(dirs...); err != nil {
		return nil, left, nil, err
	}
	if !m.Warm && !left.Cold() {
		return nil, left, nil, fmt.Errorf("not cold: %d files with %d bytes, %d of them cached, are left below %v", left.Files, left.StoredBytes, left.CachedBytes, dirs)
	}
	if m.Registry != nil {
		if err := m.Registry.Reset(ctx); err != nil {
			return nil, left, nil, err
		}
	}
	backed, err := BackMemory()
	if err != nil {
		return nil, left, nil, err
	}
	s, err := m.Way.Start(ctx)
	var cost *Cost
	if err == nil {
		cost = s.Cost
		if m.Registry != nil { // at once: what comes later is not of the start
			cost, err = m.Registry.Cost(ctx)
		}
	}
	err = errors.Join(err, backed.Close())
	if err != nil && s != nil {
		err = errors.Join(err, b.stop(ctx, s))
	}
	if err != nil {
		return nil, left, nil, err
	}
	return s, left, cost, nil
}

// stop ends a container, also when the benchmark is being interrupted.
func (b *bench) stop(ctx context.Context, s *Started) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	return s.Stop(clean)
}

// measure does one run of a mode.
func (b *bench) measure(ctx context.Context, m Mode) (err error) {
	s, left, cost, err := b.start(ctx, m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop(ctx, s)) }()
	r := b.result.Modes[m.Name]
	b.result.setImage(s.Image)
	r.ReadyMs = append(r.ReadyMs, milliseconds(s.Ready))
	r.Residue = append(r.Residue, left)
	if cost != nil {
		r.bytes = append(r.bytes, float64(cost.Bytes))
		r.requests = append(r.requests, float64(cost.Requests))
	}
	for i, url := range b.Pages {
		for _, to := range []*Samples{&r.Pages[i].first, &r.Pages[i].second} {
			took, err := getPage(ctx, url)
			if err != nil {
				return err
			}
			*to = append(*to, milliseconds(took))
		}
	}
	if b.Read == "" {
		return nil
	}
	for _, to := range []*Samples{&r.firstRead, &r.secondRead} {
		took, n, err := ReadFile(s.Root, b.Read)
		if err != nil {
			return err
		}
		b.result.ReadBytes = n
		*to = append(*to, milliseconds(took))
	}
	return ctx.Err()
}
