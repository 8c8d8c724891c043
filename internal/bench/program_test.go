package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// envBeProgram makes the test binary a program that is a way; its value is the
// way's directory.
const envBeProgram = "THAW_TEST_BE_PROGRAM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(envBeProgram); dir != "" {
		if err := Serve(context.Background(), &directory{dir}, os.Stdin, os.Stdout); err != nil {
			println(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// directory is a way whose containers are files.
type directory struct{ path string }

func (d *directory) file() string { return filepath.Join(d.path, "running") }

func (d *directory) Prepare(context.Context) error { return os.Mkdir(d.path, 0o755) }

func (d *directory) Reset(context.Context) ([]string, error) {
	if _, err := os.Stat(d.file()); err == nil {
		return nil, errors.New("it runs")
	}
	return []string{d.path, "/x"}, nil
}

func (d *directory) Start(ctx context.Context) (*Started, error) {
	if err := os.WriteFile(d.file(), nil, 0o644); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(d.path), "hang")); err == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &Started{Ready: 42 * time.Millisecond, Root: d.path, Stop: func(context.Context) error { return os.Remove(d.file()) }}, nil
}

func (d *directory) Close(context.Context) error {
	if _, err := os.Stat(filepath.Join(filepath.Dir(d.path), "keep")); err == nil {
		return errors.New("something is in the way")
	}
	return os.RemoveAll(d.path)
}

func newDirectory(t *testing.T) (w Way, base string) {
	base = t.TempDir()
	t.Setenv(envBeProgram, filepath.Join(base, "way"))
	w = NewProgram("/proc/self/exe")
	if err := w.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w, base
}

func TestProgram(t *testing.T) {
	w, base := newDirectory(t)
	for range 2 {
		dirs, err := w.Reset(t.Context())
		if err != nil || !slices.Equal(dirs, []string{filepath.Join(base, "way"), "/x"}) {
			t.Fatalf("reset: %v, %v", dirs, err)
		}
		s, err := w.Start(t.Context())
		if err != nil || s.Ready != 42*time.Millisecond || s.Root != filepath.Join(base, "way") {
			t.Fatalf("start: %+v, %v", s, err)
		}
		if _, err := w.Reset(t.Context()); err == nil || err.Error() != "it runs" {
			t.Errorf("reset while it runs: %v", err)
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(base, "way")); err == nil {
		t.Error("the program did not close the way")
	}
	if _, err := w.Start(t.Context()); err == nil {
		t.Error("it starts after it was closed")
	}
}

// TestProgramCancelled: what is under way is given up, and cleaned up.
func TestProgramCancelled(t *testing.T) {
	w, base := newDirectory(t)
	if err := os.WriteFile(filepath.Join(base, "hang"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for t.Context().Err() == nil {
			if _, err := os.Stat(filepath.Join(base, "way", "running")); err == nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := w.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled start: %v", err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(base, "way")); err == nil {
		t.Error("the program did not close the way")
	}
}

func TestProgramFails(t *testing.T) {
	w, base := newDirectory(t)
	if err := os.WriteFile(filepath.Join(base, "keep"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "something is in the way") {
		t.Errorf("close: %v", err)
	}
	none := NewProgram("/none")
	if err := none.Prepare(t.Context()); err == nil {
		t.Error("a program that is not there starts")
	}
	if err := none.Close(t.Context()); err != nil {
		t.Errorf("close of what was never started: %v", err)
	}
}
