package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/daemon/api"
)

// How an image was started, in one word.
const (
	verdictLazy  = "lazy"
	verdictEager = "eager" // brought whole before it started
	verdictPlain = "plain" // left to containerd
)

func newWhyCommand(g *globalOptions) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "why IMAGE|CONTAINER", Short: "Say whether an image was started lazily, why not, and what it waited for",
		Long: `Say of an image, or of a container or mount by its name or directory, how it was
started here of late: lazily or not, why by a reason code, what each phase took,
and what its reads waited for. It knows what is mounted now and the last 256
mounts that ended. The reason codes are in docs/observability.md.

Exit codes: 0 it is known, 1 it is not, or it failed, 2 wrong usage, 130 interrupted.`,
		Example: `  thaw why registry.example.com/app:1.2
  thaw why web --json`,
		Args: exactArgs("IMAGE|CONTAINER"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return g.mountNames(cmd), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			w, err := c.Why(cmd.Context(), absLayout(args[0]))
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, whyJSON{Verdict: verdict(w), Reasons: reasons(w), Why: w})
			}
			printWhy(cmd.OutOrStdout(), w, time.Now())
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// mountNames are the names that a shell may complete: of what is mounted, where a
// daemon runs.
func (g *globalOptions) mountNames(cmd *cobra.Command) []string {
	c, err := g.client()
	if err != nil {
		return nil
	}
	s, err := c.Status(cmd.Context())
	if err != nil {
		return nil
	}
	var names []string
	for _, m := range s.Mounts {
		names = append(names, m.ID, m.Image)
	}
	return names
}

// whyJSON is what is said as JSON: the verdict and the reasons are of the newest
// start, or where there was none, of the last fallback.
type whyJSON struct {
	Verdict string   `json:"verdict"`
	Reasons []string `json:"reasons"`
	*api.Why
}

// latest are the fallbacks of the newest start, or the last one of the image.
func latest(w *api.Why) []api.Fallback {
	if len(w.Mounts) > 0 {
		return w.Mounts[0].Fallbacks
	}
	return w.Fallbacks[:min(len(w.Fallbacks), 1)]
}

func verdict(w *api.Why) string { return verdictOf(latest(w)) }

func verdictOf(fallbacks []api.Fallback) string {
	for _, f := range fallbacks {
		if f.Action == verdictEager || f.Action == verdictPlain {
			return f.Action
		}
	}
	return verdictLazy
}

func reasons(w *api.Why) []string {
	codes := []string{}
	for _, f := range latest(w) {
		codes = append(codes, f.Reason)
	}
	return codes
}

func printWhy(w io.Writer, why *api.Why, now time.Time) {
	for i := range why.Mounts {
		printWhyMount(w, &why.Mounts[i], now)
	}
	if len(why.Fallbacks) == 0 {
		return
	}
	fmt.Fprintln(w, "fallbacks of the image:")
	for _, f := range why.Fallbacks {
		times := "once"
		if f.Count > 1 {
			times = fmt.Sprintf("%d times", f.Count)
		}
		fmt.Fprintf(w, "  %s %s, last %s ago", f.Reason, times, units.HumanDuration(now.Sub(f.Last)))
		printReason(w, f)
	}
}

// printReason ends the line that a reason was named in, and says more of it.
func printReason(w io.Writer, f api.Fallback) {
	switch f.Action {
	case verdictEager:
		fmt.Fprint(w, ": brought whole before it started")
	case verdictPlain:
		fmt.Fprint(w, ": left to containerd")
	}
	fmt.Fprintln(w)
	if f.Detail != "" {
		fmt.Fprintf(w, "    %s\n", f.Detail)
	}
	fmt.Fprintf(w, "    hint: %s\n", f.Hint)
}

func printWhyMount(w io.Writer, m *api.Mount, now time.Time) {
	when := "since " + units.HumanDuration(now.Sub(m.Created))
	if !m.Ended.IsZero() {
		when = fmt.Sprintf("ended %s ago, after %s", units.HumanDuration(now.Sub(m.Ended)), units.HumanDuration(m.Ended.Sub(m.Created)))
	}
	fmt.Fprintf(w, "%s  %s  %s\n", m.ID, m.Image, when)
	fmt.Fprintf(w, "  %s: mount path %s, index %s\n", verdictOf(m.Fallbacks), m.Mode, indexText(m.Index))
	for _, f := range m.Fallbacks {
		fmt.Fprintf(w, "  because of %s", f.Reason)
		printReason(w, f)
	}
	var phases []string
	for _, p := range m.Phases {
		phases = append(phases, fmt.Sprintf("%s %s", p.Name, p.End.Sub(p.Start).Round(100*time.Microsecond)))
	}
	fmt.Fprintf(w, "  took: %s\n", strings.Join(phases, ", "))
	s := m.Stats
	if s.Waits > 0 || s.Waiting > 0 {
		fmt.Fprintf(w, "  waited: %d reads, half of them up to %s, 99 %% up to %s, %s in all; %d wait now\n", s.Waits, s.WaitP50.Round(10*time.Microsecond),
			s.WaitP99.Round(10*time.Microsecond), s.WaitTotal.Round(time.Millisecond), s.Waiting)
	} else {
		fmt.Fprintln(w, "  waited: no read")
	}
	fmt.Fprintf(w, "  here: %s\n", hereText(s))
	if s.Bundle != "" {
		fmt.Fprintf(w, "  start-up bundle: %s\n", s.Bundle)
	}
	if o := s.Outage; o != nil && o.Until.IsZero() {
		fmt.Fprintf(w, "  the registry gives nothing since %s: %s\n", units.HumanDuration(now.Sub(o.Since)), o.Error)
	} else if s.Error != "" {
		fmt.Fprintf(w, "  failed: %s\n", s.Error)
	}
}

// indexText says where an index came from.
func indexText(origin string) string {
	switch origin {
	case "built":
		return "made just then from the passing bytes"
	case "local":
		return "made on this node before"
	case "stored":
		return "fetched by this node before"
	case "registry":
		return "from the registry"
	}
	return origin
}

func hereText(s api.Stats) string {
	if s.Complete {
		return fmt.Sprintf("all of %s, proven", units.HumanSize(float64(s.UnpackedBytes)))
	}
	return fmt.Sprintf("%d %% of %s; %s of its %s were fetched", share(s), units.HumanSize(float64(s.UnpackedBytes)),
		units.HumanSize(float64(s.FetchedBytes)), units.HumanSize(float64(s.ImageBytes)))
}

// share is how much of an image is here, in percent, rounded down.
func share(s api.Stats) int64 {
	if s.Complete {
		return 100
	}
	return 100 * s.HereBytes / max(s.UnpackedBytes, 1)
}
