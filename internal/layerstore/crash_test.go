package layerstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
)

const childEnv = "THAW_TEST_LAYERSTORE_CHILD"

// The layers of the crash test: one in small spans, one for ingests.
func crashFakes() (small, large, evil *fake) {
	small = makeFake(7, 64*testSpan+99, testSpan)
	return small, makeFake(8, 2*SpanBytes+1, SpanBytes), makeFake(9, 10*testSpan, testSpan).lying(4)
}

// crashChild works on the store without end and says so a byte a step, until it
// is killed. An error ends it, to be seen by the parent.
func crashChild(dir string) {
	s, err := Open(dir, Options{BootID: os.Getenv("BOOT"), Log: quiet(), DropCache: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	small, large, evil := crashFakes()
	var wg sync.WaitGroup
	for _, work := range []func(context.Context, *Store) error{
		func(ctx context.Context, s *Store) error { return churn(ctx, s, small) },
		func(ctx context.Context, s *Store) error { return churn(ctx, s, small) },
		func(ctx context.Context, s *Store) error { return churnIngest(ctx, s, large) },
		func(ctx context.Context, s *Store) error { return churnQuarantine(ctx, s, evil) },
	} {
		wg.Go(func() {
			for {
				if err := work(context.Background(), s); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
			}
		})
	}
	wg.Wait()
}

func step() { os.Stdout.Write([]byte{'.'}) }

func churn(ctx context.Context, s *Store, f *fake) error {
	l, err := s.Acquire(ctx, f.meta, nil)
	if err != nil {
		return err
	}
	err = churnLayer(ctx, l, f)
	complete := l.Complete()
	if err := errors.Join(err, l.Release()); err != nil {
		return err
	}
	if complete && rand.IntN(3) == 0 { // begin again
		err = s.Remove(ctx, f.meta.Blob)
		if errors.Is(err, ErrInUse) || errors.Is(err, ErrNotFound) {
			err = nil
		}
	}
	return err
}

func churnLayer(ctx context.Context, l *Layer, f *fake) (err error) {
	for _, i := range rand.Perm(f.meta.Spans())[:20] {
		step()
		if _, err := l.Recheck(i); err != nil {
			return err
		}
		if err := l.Put(i, f.span(i)); err != nil {
			return err
		}
		switch rand.IntN(6) {
		case 0:
			err = l.Sync()
		case 1:
			_, err = l.Advance(ctx, testSpan)
		}
		if err != nil {
			return err
		}
	}
	if err := l.Finish(ctx); err != nil && !errors.Is(err, ErrIncomplete) {
		return err
	}
	return nil
}

func churnIngest(ctx context.Context, s *Store, f *fake) error {
	g, err := s.Ingest(ctx, f.meta.Blob, f.meta.BlobBytes, f.meta.DiffID)
	if err != nil {
		return err
	}
	defer g.Abort()
	for i := range f.meta.Spans() {
		step()
		if _, err := g.Write(f.span(i)); err != nil {
			return err
		}
	}
	l, err := g.Commit(ctx, f.meta.SpanDigests)
	if err != nil {
		return err
	}
	step()
	if err := l.Release(); err != nil || rand.IntN(2) == 0 {
		return err
	}
	return s.Remove(ctx, f.meta.Blob)
}

func churnQuarantine(ctx context.Context, s *Store, f *fake) error {
	step()
	l, err := s.Acquire(ctx, f.meta, nil)
	if errors.Is(err, ErrQuarantined) {
		return forgive(s, f) // begin again
	}
	if err != nil {
		return err
	}
	defer l.Release()
	for i := range f.meta.Spans() {
		if err := l.Put(i, f.span(i)); err != nil {
			return err
		}
	}
	step()
	var de *DiffIDError
	if err := l.Finish(ctx); !errors.As(err, &de) {
		return fmt.Errorf("finish of a lie: %v", err)
	}
	return nil
}

func forgive(s *Store, f *fake) error {
	key := quarantineKey{f.meta.Blob, f.meta.TableDigest()}
	s.mu.Lock()
	delete(s.quarantined, key)
	s.mu.Unlock()
	return s.trash(s.path(quarantineDir, dirName(key.blob)+"-"+key.table.Encoded()[:16]))
}

// TestKill9 lets a child work, kills it at a random step, and looks at what the
// next process believes; sometimes that one finds itself in another boot, with
// data spoilt meanwhile.
func TestKill9(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 8
	}
	dir := t.TempDir()
	boot := boot1
	for round := range rounds {
		runAndKill(t, dir, boot, 1+rand.IntN(400))
		spoil := false
		if round%4 == 3 {
			boot = fmt.Sprintf("%08x-2222-4333-8444-555555555555", round+1)
			spoil = true
		}
		verifyCrashed(t, dir, boot, spoil)
	}
}

func runAndKill(t *testing.T, dir, boot string, steps int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir, "BOOT="+boot)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	r := bufio.NewReader(out)
	for range steps {
		if _, err := r.ReadByte(); err != nil {
			t.Fatalf("child ended by itself: %v, %v", err, cmd.Wait())
		}
	}
	must(t, cmd.Process.Kill())
	err = cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
		t.Fatalf("child: %v", err)
	}
}

func verifyCrashed(t *testing.T, dir, boot string, spoil bool) {
	t.Helper()
	s := openStore(t, dir, boot)
	defer s.Close()
	noTemps(t, s)
	small, large, evil := crashFakes()
	if spoil { // what a power cut can do to data that was never synced, and worse
		h, _ := s.readHave(s.layerDir(small.meta.Blob), &small.meta)
		if exists(tarFile(s, small)) && (h == nil || h.flags&flagComplete == 0) {
			for range 5 {
				scribble(t, tarFile(s, small), rand.Int64N(small.meta.TarBytes-9), make([]byte, 9))
			}
		}
	}
	for _, f := range []*fake{small, large} {
		l := acquire(t, s, f)
		checkBelieved(t, l, f)
		if spoil && !l.Complete() && l.HaveBytes() > 0 {
			t.Errorf("believed over a boot: %s", state(l))
		}
		for i := range f.meta.Spans() {
			if _, err := l.Recheck(i); err != nil {
				t.Error(err)
			}
		}
		checkBelieved(t, l, f)
		must(t, l.Release())
	}
	if s.Quarantined(evil.meta.Blob, evil.meta.TableDigest()) {
		if exists(s.layerDir(evil.meta.Blob)) {
			t.Error("a quarantined layer is still there")
		}
	} else if l := acquire(t, s, evil); l.Complete() {
		t.Error("a lie is complete")
	} else {
		must(t, l.Release())
	}
}
