package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/thaw-project/thaw/internal/profile"
)

// overheadMost is what observing a start may cost, as a ratio of times.
const overheadMost = 1.05

// overheadTimes are what is compared of starts that were observed and others that were
// not, each known from the same probes.
var overheadTimes = []struct{ name, event string }{{"to listen", profile.EventReached}, {"to ready", profile.EventReady}}

// paired are the times of an event in the runs of two subjects, of which each follows the
// other's: of rounds in which both went well.
func paired(a, b *profile.Subject, event string) (as, bs []float64) {
	for i := range min(len(a.Runs), len(b.Runs)) {
		ra, rb := &a.Runs[i], &b.Runs[i]
		ea, eb := ra.Event(event), rb.Event(event)
		if ra.Good() && rb.Good() && ea != nil && eb != nil && ea.AtMs > 0 && eb.AtMs > 0 {
			as, bs = append(as, ea.AtMs), append(bs, eb.AtMs)
		}
	}
	return as, bs
}

// printOverhead says what observing costs, by starts that were observed and starts in
// turn with them that were not.
func printOverhead(w io.Writer, observed, unobserved *profile.Subject) error {
	w = plainWriter{w}
	fmt.Fprint(w, `
What observing costs, observed over unobserved. Of an unobserved start nothing is traced, no
file is watched and no process followed. Both are probed alike, and both times are the probes':
to listen is from the request to the first connection that is not refused (tried every 2 ms,
or 0.5 % of the time so far), and so both have the same error.

`)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\tpairs\tunobserved\tobserved\tratio of medians\tof pairs\t95 % of it\thalf of the pairs\t")
	var listen profile.Pairs
	for i, what := range overheadTimes {
		as, bs := paired(unobserved, observed, what.event)
		p, ok := profile.ComparePairs(as, bs)
		if i == 0 {
			listen = p
		}
		if !ok {
			fmt.Fprintf(tw, "%s\t0\t?\t?\t?\t?\t?\t?\t\n", what.name)
			continue
		}
		ma, mb := profile.Percentile(as, 0.5), profile.Percentile(bs, 0.5)
		ci := "-"
		if p.CI != nil {
			ci = ratios(*p.CI)
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%.3f\t%.3f\t%s\t%s\t\n", what.name, p.N, shortMs(ma), shortMs(mb), mb/ma, p.Ratio, ci, ratios(p.Middle))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n", overheadVerdict(listen))
	return err
}

func ratios(i profile.Interval) string { return fmt.Sprintf("%.3f to %.3f", i.Low, i.High) }

// overheadVerdict says whether observing is shown to cost little.
func overheadVerdict(p profile.Pairs) string {
	limit := fmt.Sprintf("less than %.0f %% of the time to listen", 100*(overheadMost-1))
	switch {
	case p.Most == nil:
		return fmt.Sprintf("Whether observing costs %s is not shown: it takes %d pairs, and many more where runs differ much.", limit, profile.MinRuns)
	case *p.Most < overheadMost:
		return fmt.Sprintf("Observing costs %s: %+.1f %%, and %.1f %% at most with 95 %% confidence.", limit, 100*(p.Ratio-1), 100*(*p.Most-1))
	case p.CI != nil && p.CI.Low > overheadMost:
		return fmt.Sprintf("Observing costs more: %+.1f %%, and it was to be %s.", 100*(p.Ratio-1), limit)
	}
	return fmt.Sprintf("That observing costs %s is not shown: %+.1f %%, but up to %.1f %% with 95 %% confidence. More runs say more.", limit, 100*(p.Ratio-1), 100*(*p.Most-1))
}
