package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// topOptions are the flags of top.
type topOptions struct {
	interval time.Duration
	once     bool
	json     bool
}

func newTopCommand(g *globalOptions) *cobra.Command {
	var opts topOptions
	cmd := &cobra.Command{
		Use: "top", Short: "Show live what is mounted, how much of it is here, who waits, and how fast it comes", Args: noArgs,
		Long: `Show what is mounted by its images: how much of each is here, how many reads wait
and how long they did, and how fast bytes come. On a terminal the picture is drawn
anew until Ctrl-C; elsewhere one picture follows another. The first one comes after
one interval, for rates need two looks.

Exit codes: 0 done or Ctrl-C, 1 no daemon runs, or it failed, 2 wrong usage.`,
		Example: `  thaw top
  thaw top --once --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.interval < 10*time.Millisecond {
				return usageError{fmt.Errorf("--interval %v: want at least 10ms", opts.interval)}
			}
			return runTop(cmd, g, opts)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&opts.interval, "interval", time.Second, "time between two looks")
	f.BoolVar(&opts.once, "once", false, "show one picture and end")
	f.BoolVar(&opts.json, "json", false, "print each picture as JSON on a line of its own")
	return cmd
}

// topPicture is what top shows, and its JSON.
type topPicture struct {
	Version      int        `json:"version"`
	Time         time.Time  `json:"time"`
	Pid          int        `json:"pid"`
	Mode         string     `json:"mode"`
	MemoryBytes  int64      `json:"memory_bytes"`
	Mounts       int        `json:"mounts"`
	Waiting      int64      `json:"waiting"`       // reads
	NetworkRate  float64    `json:"network_rate"`  // bytes/s from registries
	RequestRate  float64    `json:"request_rate"`  // requests/s
	StoreBytes   int64      `json:"store_bytes"`   // of layers on disk
	FreeBytes    int64      `json:"free_bytes"`    // on that disk
	Images       []topImage `json:"images"`        // those with waiting readers first, then those that lack most
	EvictedBytes int64      `json:"evicted_bytes"` // since the daemon was started
}

// topImage is an image with what its mounts have in common.
type topImage struct {
	Image       string  `json:"image"`
	Mounts      int     `json:"mounts"`
	Mode        string  `json:"mode"`
	HerePercent float64 `json:"here_percent"`
	HereBytes   int64   `json:"here_bytes"`
	Bytes       int64   `json:"bytes"` // uncompressed
	Complete    bool    `json:"complete"`
	Waiting     int64   `json:"waiting"`
	Waits       int     `json:"waits"`       // of all its mounts since they were made
	WaitP99Ms   float64 `json:"wait_p99_ms"` // the longest of its mounts
	HereRate    float64 `json:"here_rate"`   // uncompressed bytes/s that came
	State       string  `json:"state"`       // complete, hydrating, idle, outage, failed
}

func runTop(cmd *cobra.Command, g *globalOptions, opts topOptions) error {
	ctx := cmd.Context()
	c, err := g.client()
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	f, ok := out.(*os.File)
	screen := ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" && !opts.once && !opts.json
	tick := time.NewTicker(opts.interval)
	defer tick.Stop()
	before, err := c.Status(ctx)
	if err != nil {
		return err
	}
	at := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		now, err := c.Status(ctx)
		if ctx.Err() != nil { // the way to end it
			if screen {
				fmt.Fprintln(out)
			}
			return nil
		}
		if errors.Is(err, api.ErrNotRunning) && !opts.once && before != nil {
			before = nil // it may be upgraded; a second time it is an error
			continue
		}
		if err != nil {
			return err
		}
		p := picture(before, now, time.Since(at))
		before, at = now, time.Now()
		if err := p.show(out, opts.json, screen); err != nil || opts.once {
			return err
		}
	}
}

// picture compares two looks. before may be nil.
func picture(before, now *api.Status, took time.Duration) *topPicture {
	p := &topPicture{Version: outputVersion, Time: time.Now().UTC(), Pid: now.Pid, Mode: now.Mode, MemoryBytes: now.MemoryBytes, Mounts: len(now.Mounts),
		Waiting: now.Waiting, Images: []topImage{}}
	if now.Cache != nil {
		p.StoreBytes, p.FreeBytes, p.EvictedBytes = now.Cache.DiskBytes, now.Cache.FreeBytes, now.Cache.EvictedBytes
	}
	if before == nil || before.Pid != now.Pid || !before.Started.Equal(now.Started) {
		before = now // counts began anew
	}
	rate := func(was, is int64) float64 { return float64(max(is-was, 0)) / max(took.Seconds(), 1e-3) }
	p.NetworkRate, p.RequestRate = rate(before.NetworkBytes, now.NetworkBytes), rate(before.Requests, now.Requests)
	was := map[string]int64{} // here, by image
	for _, m := range before.Mounts {
		was[m.Image] = max(was[m.Image], m.Stats.HereBytes)
	}
	byImage := map[string]*topImage{}
	for i := range now.Mounts {
		m := &now.Mounts[i]
		t := byImage[m.Image]
		if t == nil {
			t = &topImage{Image: m.Image, Mode: m.Mode, State: stateOf(m.Stats)}
			byImage[m.Image] = t
		}
		t.add(m)
	}
	for name, t := range byImage {
		if h, ok := was[name]; ok {
			t.HereRate = rate(h, t.HereBytes)
		}
		if t.State == "hydrating" && t.HereRate == 0 && t.Waiting == 0 {
			t.State = "idle"
		}
		p.Images = append(p.Images, *t)
	}
	slices.SortFunc(p.Images, func(a, b topImage) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.Bytes-b.HereBytes, a.Bytes-a.HereBytes), cmp.Compare(a.Image, b.Image))
	})
	return p
}

// add adds a mount of the image. Mounts of one image share its layers.
func (t *topImage) add(m *api.Mount) {
	s := m.Stats
	t.Mounts++
	t.Bytes, t.HereBytes = max(t.Bytes, s.UnpackedBytes), max(t.HereBytes, s.HereBytes)
	t.HerePercent = 100 * float64(t.HereBytes) / float64(max(t.Bytes, 1))
	t.Complete = t.Complete || s.Complete
	if t.Complete {
		t.HerePercent, t.State = 100, "complete"
	}
	t.Waiting = max(t.Waiting, s.Waiting)
	t.Waits += s.Waits
	t.WaitP99Ms = max(t.WaitP99Ms, milliseconds(s.WaitP99))
}

func stateOf(s api.Stats) string {
	switch {
	case s.Complete:
		return "complete"
	case s.Outage != nil && s.Outage.Until.IsZero():
		return "outage"
	case s.Error != "":
		return "failed"
	}
	return "hydrating"
}

// show writes the picture: as a line of JSON, as text, or drawn over the last one.
func (p *topPicture) show(w io.Writer, asJSON, screen bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(p)
	}
	var b bytes.Buffer
	p.text(&b)
	if !screen {
		b.WriteByte('\n')
		_, err := w.Write(b.Bytes())
		return err
	}
	f := w.(*os.File)
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil {
		width, height = 80, 24
	}
	_, err = io.WriteString(w, draw(b.String(), width, height))
	return err
}

// draw puts a text over what a terminal shows: each line cut to its width and cleared
// to its end, the rest of the screen cleared.
func draw(text string, width, height int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, line := range lines[:min(len(lines), max(height-1, 1))] {
		if i > 0 {
			b.WriteByte('\n') // which a terminal makes two of
		}
		if r := []rune(line); len(r) > width {
			line = string(r[:width])
		}
		b.WriteString(line + "\x1b[K")
	}
	b.WriteString("\x1b[J")
	return b.String()
}

func (p *topPicture) text(w io.Writer) {
	size := func(n int64) string { return units.HumanSize(float64(n)) }
	fmt.Fprintf(w, "thaw %s  pid %d  %s resident  %d mounts  %d reads wait  %s/s in %.1f requests/s\n", p.Mode, p.Pid, size(p.MemoryBytes), p.Mounts, p.Waiting,
		units.HumanSize(p.NetworkRate), p.RequestRate)
	fmt.Fprintf(w, "layers %s on disk, %s free\n\n", size(p.StoreBytes), size(p.FreeBytes))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "IMAGE\tMOUNTS\tHERE\tOF\tRATE\tWAITING\tWAITS\tP99\tSTATE")
	for _, i := range p.Images {
		fmt.Fprintf(tw, "%s\t%d\t%.0f%%\t%s\t%s/s\t%d\t%d\t%.1f ms\t%s\n", i.Image, i.Mounts, i.HerePercent, size(i.Bytes), units.HumanSize(i.HereRate), i.Waiting, i.Waits,
			i.WaitP99Ms, i.State)
	}
	tw.Flush()
	if len(p.Images) == 0 {
		fmt.Fprintln(w, "nothing is mounted")
	}
}
