package spans

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const patience = 30 * time.Second

// TestSender: what is sent reaches the program, which ends with the sender.
func TestSender(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	s := NewSender([]string{"sh", "-c", `cat > "$0"`, out}, slog.New(slog.DiscardHandler))
	for _, image := range []string{"a", "b"} {
		s.Send(Start{Image: image})
	}
	s.Close(patience)
	s.Send(Start{Image: "late"}) // does no harm
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var images []string
	for line := range bytes.Lines(b) {
		var start Start
		if err := json.Unmarshal(line, &start); err != nil {
			t.Error(err)
		}
		images = append(images, start.Image)
	}
	if strings.Join(images, " ") != "a b" {
		t.Errorf("the program got %q", images)
	}
}

// TestSenderHangs: a program that takes nothing holds nobody up, nor does one that
// there is not, or that dies.
func TestSenderHangs(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "end")
	for _, command := range [][]string{{"sh", "-c", `while [ ! -e "$0" ]; do sleep 0.05; done`, fifo}, {"/nowhere/none"}, {"false"}} {
		var log bytes.Buffer
		s := NewSender(command, slog.New(slog.NewTextHandler(&log, nil)))
		begun := time.Now()
		for range 2*queued + 100 {
			s.Send(Start{Image: strings.Repeat("x", 4<<10)})
		}
		s.Close(10 * time.Millisecond)
		if took := time.Since(begun); took > patience {
			t.Errorf("%v: took %v", command, took)
		}
		if err := os.WriteFile(fifo, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		<-s.done
		if log.Len() == 0 {
			t.Errorf("%v: nothing is said", command)
		}
	}
}

func TestNil(t *testing.T) {
	var s *Sender
	s.Send(Start{})
	s.Close(0)
}

func TestWanted(t *testing.T) {
	for _, c := range []struct {
		env  string
		want bool
	}{
		{"", false},
		{"OTEL_SERVICE_NAME=x", false},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4318", true},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://x:4318/v1/traces", true},
		{"OTEL_TRACES_EXPORTER=otlp", true},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x OTEL_TRACES_EXPORTER=none", false},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x OTEL_SDK_DISABLED=true", false},
	} {
		got := Wanted(func(name string) string {
			for _, kv := range strings.Fields(c.env) {
				if k, v, _ := strings.Cut(kv, "="); k == name {
					return v
				}
			}
			return ""
		})
		if got != c.want {
			t.Errorf("%q: wanted %v", c.env, got)
		}
	}
}
