package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain is the program too: tests run their own binary.
func TestMain(m *testing.M) {
	switch os.Getenv("THAW_CLOUD_TEST") {
	case "serve":
		if err := Serve(context.Background(), os.Stdin, os.Stdout, handlers); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "die":
		fmt.Fprintln(os.Stderr, "no memory")
		os.Exit(3)
	case "babble":
		fmt.Println("hello")
	default:
		os.Exit(m.Run())
	}
}

var handlers = map[string]Handler{
	"echo": func(_ context.Context, args json.RawMessage, send func(any) error) error {
		for range 3 {
			if err := send(args); err != nil {
				return err
			}
		}
		return nil
	},
	"deny": func(context.Context, json.RawMessage, func(any) error) error {
		return fmt.Errorf("wrapped: %w", &Error{Message: "denied", Hint: "ask nicely"})
	},
	"fail": func(context.Context, json.RawMessage, func(any) error) error { return errors.New("broken") },
	"wait": func(ctx context.Context, _ json.RawMessage, send func(any) error) error {
		if err := send("here"); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	},
}

func program(t *testing.T, mode string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("THAW_CLOUD_TEST", mode)
	return exe
}

func TestAsk(t *testing.T) {
	exe := program(t, "serve")
	var got []string
	err := Ask(t.Context(), exe, "echo", ECS{Cluster: "c"}, func(b []byte) error {
		got = append(got, string(b))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat(`{"cluster":"c"} `, 3); strings.Join(got, " ")+" " != want {
		t.Errorf("got %q", got)
	}
	var e *Error
	if err := Ask(t.Context(), exe, "deny", nil, nil); !errors.As(err, &e) || e.Message != "denied" || e.Hint != "ask nicely" {
		t.Errorf("deny: %v", err)
	}
	if err := Ask(t.Context(), exe, "fail", nil, nil); err == nil || err.Error() != "broken" {
		t.Errorf("fail: %v", err)
	}
	if err := Ask(t.Context(), exe, "new", nil, nil); err == nil || !strings.Contains(err.Error(), "different versions") {
		t.Errorf("a call that it does not know: %v", err)
	}
}

// TestAskEnds: the program ends with who asks, and one that dies says what it said.
func TestAskEnds(t *testing.T) {
	enough := errors.New("enough")
	if err := Ask(t.Context(), program(t, "serve"), "wait", nil, func([]byte) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("given up: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := Ask(ctx, program(t, "serve"), "wait", nil, func([]byte) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := Ask(t.Context(), program(t, "die"), "echo", nil, nil); err == nil || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("died: %v", err)
	}
	if err := Ask(t.Context(), program(t, "babble"), "echo", nil, nil); err == nil {
		t.Error("babble was taken")
	}
	if err := Ask(t.Context(), filepath.Join(t.TempDir(), "none"), "echo", nil, nil); err == nil {
		t.Error("no program was taken")
	}
}
