package trace

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Version is the version of the format that Encode writes.
const Version = 1

// Phases of a start, in their order. An access belongs to the phase that had
// begun when it was made.
const (
	PhaseMount  = "mount"  // the image is being mounted
	PhaseCreate = "create" // the container is being created
	PhaseStart  = "start"  // the container's process is being started
	PhaseReady  = "ready"  // it runs, and is not ready yet
	PhaseAfter  = "after"  // shortly after it was ready
)

// Phases lists them in their order.
var Phases = []string{PhaseMount, PhaseCreate, PhaseStart, PhaseReady, PhaseAfter}

// maxTarBytes bounds offsets, as it does in the index: 2 TiB.
const maxTarBytes = 1 << 41

// Access is one read of a layer during a start.
type Access struct {
	Layer  digest.Digest // of the blob, as it is served
	Offset int64         // in the uncompressed tar
	Length int64         // in bytes, at least 1
	At     time.Duration // since the run began
	Phase  string        // one of Phases
}

// Trace is what a start read.
type Trace struct {
	Version   int
	Image     digest.Digest // of the image's manifest
	Reference string        // how the image was named, for people
	Command   []string      // what ran in the container
	Ready     time.Duration // from the begin of the run; 0 when it was never told
	Runs      int           // that this was made of, at least 1
	Created   time.Time     // end of the newest run, whole seconds in UTC
	Accesses  []Access      // At never falls
}

// Bytes sums the lengths of all accesses.
func (t *Trace) Bytes() int64 {
	var n int64
	for _, a := range t.Accesses {
		n += a.Length
	}
	return n
}

// Layers returns the layers that were read, in the order of their first use.
func (t *Trace) Layers() []digest.Digest {
	var layers []digest.Digest
	seen := map[digest.Digest]bool{}
	for _, a := range t.Accesses {
		if !seen[a.Layer] {
			seen[a.Layer] = true
			layers = append(layers, a.Layer)
		}
	}
	return layers
}

// check says what is wrong with a trace.
func (t *Trace) check() error {
	if t.Version != Version {
		return fmt.Errorf("version %d is not known, only %d", t.Version, Version)
	}
	if err := t.Image.Validate(); err != nil {
		return fmt.Errorf("image %q: %w", t.Image, err)
	}
	if t.Runs < 1 || t.Runs > maxRuns {
		return fmt.Errorf("%d runs", t.Runs)
	}
	if t.Ready < 0 {
		return fmt.Errorf("ready after %v", t.Ready)
	}
	for i, a := range t.Accesses {
		if err := a.check(); err != nil {
			return fmt.Errorf("access %d: %w", i, err)
		}
		if i > 0 && a.At < t.Accesses[i-1].At {
			return fmt.Errorf("access %d is before the one in front of it", i)
		}
	}
	return nil
}

func (a Access) check() error {
	if a.Offset < 0 || a.Length < 1 || a.Offset > maxTarBytes || a.Length > maxTarBytes-a.Offset {
		return fmt.Errorf("range %d+%d is outside of any layer", a.Offset, a.Length)
	}
	if a.At < 0 || a.At > math.MaxInt64/2 {
		return fmt.Errorf("at %v", a.At)
	}
	if !slices.Contains(Phases, a.Phase) {
		return fmt.Errorf("phase %q is not known", a.Phase)
	}
	if a.Layer == "" {
		return errors.New("it has no layer")
	}
	return nil
}
