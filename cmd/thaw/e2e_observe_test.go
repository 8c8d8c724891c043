package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

// scrape is what a daemon tells Prometheus.
type scrape map[string]*dto.MetricFamily

func (n *node) scrape(addr string) scrape {
	n.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		n.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		n.Fatal(err)
	}
	return all
}

// value sums a metric over the label values that are given, as in "mode=fuse".
func (s scrape) value(name string, labels ...string) float64 {
	sum := 0.0
	for _, m := range s[name].GetMetric() {
		matches := 0
		for _, l := range m.Label {
			for _, want := range labels {
				if l.GetName()+"="+l.GetValue() == want {
					matches++
				}
			}
		}
		if matches == len(labels) {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// why is what thaw why says of a name.
func (n *node) why(name string) (w whyJSON) {
	n.Helper()
	if err := json.Unmarshal([]byte(n.thaw("why", "--json", name)), &w); err != nil {
		n.Fatal(err)
	}
	return w
}

// TestObserve: metrics, why and top agree on an eager start, a lazy one, and one that
// nobody has seen.
func TestObserve(t *testing.T) {
	t.Parallel()
	layout := t.TempDir()
	writeImage(t, layout, "lazy", compressions[0], manySpans())
	writeImage(t, layout, "plain", compressions[0], [][]byte{new(layertartest.Builder).File("f", []byte("plain")).End().Bytes()})
	addr := "127.0.0.1:" + freePort(t)
	n, s := newNode(t, "metrics = \""+addr+"\""), newLab(t, layout, "none")
	n.refuses(1, "nothing is known", "why", s.Addr()+"/plain")
	plain, lazy := s.Addr()+"/plain", s.Addr()+"/lazy"
	eagerDir, lazyDir := n.mkdir(), n.mkdir()
	n.thaw("mount", "--index=ignore", plain, eagerDir)
	n.pushIndex(lazy)
	n.thaw("mount", "--background=off", lazy, lazyDir)
	if _, err := os.ReadDir(lazyDir); err != nil {
		t.Fatal(err)
	}
	readFiles(t, lazyDir)

	w := n.why(plain)
	if w.Verdict != "eager" || len(w.Mounts) != 1 || len(w.Reasons) != 1 || w.Reasons[0] != "configured" || len(w.Fallbacks) != 1 || w.Fallbacks[0].Hint == "" {
		t.Errorf("why %s: %+v", plain, w)
	}
	w = n.why(lazyDir)
	if w.Verdict != "lazy" || len(w.Mounts) != 1 || w.Mounts[0].Image != lazy+":latest" && w.Mounts[0].Image != lazy || len(w.Fallbacks) != 0 || w.Mounts[0].Stats.Waits == 0 {
		t.Errorf("why %s: %+v", lazyDir, w)
	}
	m := n.scrape(addr)
	for _, c := range []struct {
		metric string
		labels []string
		want   float64
	}{
		{"thaw_mounts", nil, 2},
		{"thaw_mounts_made_total", []string{"index=built"}, 1},
		{"thaw_mounts_made_total", []string{"index=registry"}, 1},
		{"thaw_fallbacks_total", []string{"reason=configured"}, 1},
		{"thaw_fallbacks_total", nil, 1},
		{"thaw_errors_total", nil, 0},
		{"thaw_images", nil, 2},
		{"thaw_start_phase_seconds", []string{"phase=mount"}, 2},
		{"thaw_start_phase_seconds", []string{"phase=pull"}, 1},
		{"thaw_read_wait_seconds", nil, float64(w.Mounts[0].Stats.Waits)},
		{"thaw_readers_waiting", nil, 0},
	} {
		if got := m.value(c.metric, c.labels...); got != c.want {
			t.Errorf("%s%v is %v, want %v", c.metric, c.labels, got, c.want)
		}
	}
	for _, c := range [][]string{{"thaw_read_bytes_total", "source=registry"}, {"thaw_fetched_bytes_total", "purpose=reader"}, {"thaw_fetched_bytes_total", "purpose=pull"},
		{"thaw_registry_requests_total", "code=2xx"}, {"thaw_registry_received_bytes_total"}, {"process_resident_memory_bytes"}, {"thaw_keeper_resident_memory_bytes"},
		{"thaw_store_bytes"}, {"process_cpu_seconds_total"}} {
		// What layers take is measured once a second, and ext4 allocates later.
		n.eventually(c[0]+" is more than nothing", func() bool { return m.value(c[0], c[1:]...) > 0 || n.scrape(addr).value(c[0], c[1:]...) > 0 })
	}

	var p topPicture
	if err := json.Unmarshal([]byte(n.thaw("top", "--once", "--json", "--interval=20ms")), &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Images) != 2 || p.Mounts != 2 || p.Version != 1 || p.Images[0].HerePercent <= 0 || p.Waiting != 0 {
		t.Errorf("top: %+v", p)
	}
	if text := n.thaw("top", "--once", "--interval=20ms"); !strings.Contains(text, lazy) || strings.Contains(text, "\x1b") {
		t.Errorf("top printed %q", text)
	}
	n.refuses(2, "--interval", "top", "--interval=0s")

	n.thaw("umount", eagerDir)
	n.thaw("umount", lazyDir)
	if w := n.why(plain); len(w.Mounts) != 1 || w.Mounts[0].Ended.IsZero() || w.Verdict != "eager" {
		t.Errorf("why %s after its end: %+v", plain, w)
	}
	n.thaw("daemon", "stop")
	text := n.thaw("why", lazy) // of another daemon
	for _, want := range []string{"lazy: mount path ", "index from the registry", "ended ", "waited: ", " reads, half of them up to "} {
		if !strings.Contains(text, want) {
			t.Errorf("why says %q, want %q in it", text, want)
		}
	}
}

// readFiles reads all files below a directory.
func readFiles(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		_, err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTopScreen: on a terminal the picture is drawn over the last one, and Ctrl-C ends
// it well.
func TestTopScreen(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.thaw("cache", "ls") // starts a daemon
	cmd := n.command("top", "--interval=20ms")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 10, Cols: 40})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := newOutput()
	done := make(chan struct{})
	go func() { defer close(done); io.Copy(out, f) }() // ends with an error when the terminal does
	n.eventually("it has drawn three times", func() bool { return strings.Count(out.String(), "\x1b[H") >= 3 })
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("top ended with %v: %q", err, out.String())
	}
	<-done
	for line := range strings.SplitSeq(out.String(), "\r\n") {
		for part := range strings.SplitSeq(line, "\x1b[H") {
			if text := strings.NewReplacer("\x1b[K", "", "\x1b[J", "").Replace(part); len(text) > 40 {
				t.Errorf("a line of %d characters: %q", len(text), text)
			}
		}
	}
	if !strings.Contains(out.String(), "nothing is mounted") {
		t.Errorf("drew %q", out.String())
	}
}

func TestDraw(t *testing.T) {
	got := draw("one\ntwo is long\nthree\nfour\n", 5, 4)
	want := "\x1b[Hone\x1b[K\ntwo i\x1b[K\nthree\x1b[K\x1b[J"
	if got != want {
		t.Errorf("drew %q, want %q", got, want)
	}
}

// TestLogFormat: what a command starts logs as the command was told, every line of it.
func TestLogFormat(t *testing.T) {
	t.Parallel()
	layout := t.TempDir()
	writeImage(t, layout, "i", compressions[0], manySpans())
	n, s := newNode(t), newLab(t, layout, "none")
	dir := n.mkdir()
	n.thaw("--log-format=json", "mount", "--index=ignore", s.Addr()+"/i", dir)
	n.thaw("umount", dir)
	n.thaw("daemon", "stop")
	messages := map[string]string{}
	for _, name := range []string{"daemon.log", "keeper.log"} {
		for line := range strings.Lines(n.log(name)) {
			var entry struct{ Time, Level, Msg, Image string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Time == "" || entry.Level == "" || entry.Msg == "" {
				t.Errorf("%s: %v: %s", name, err, line)
			}
			messages[entry.Msg] = entry.Image
		}
	}
	if _, ok := messages["daemon is ready"]; !ok || messages["image is not mounted lazily"] != s.Addr()+"/i" {
		t.Errorf("messages and their images: %v", messages)
	}
}
