package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
)

// row is a line of a table; the first is its head.
type row []string

// WriteText prints the result for a terminal.
func (r *Result) WriteText(w io.Writer) error {
	fmt.Fprintln(w, r.title())
	for _, table := range r.tables() {
		fmt.Fprintln(w)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, line := range table {
			fmt.Fprintln(tw, strings.TrimRight(strings.Join(line, "\t"), "\t"))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	for _, note := range r.notes() {
		if _, err := fmt.Fprintln(w, note); err != nil {
			return err
		}
	}
	return nil
}

// WriteMarkdown prints the result as Markdown.
func (r *Result) WriteMarkdown(w io.Writer) error {
	fmt.Fprintln(w, r.title())
	for _, table := range r.tables() {
		fmt.Fprintln(w)
		for i, line := range table {
			fmt.Fprintf(w, "| %s |\n", strings.Join(line, " | "))
			if i == 0 {
				fmt.Fprintln(w, strings.Repeat("|---", len(line))+"|")
			}
		}
	}
	fmt.Fprintln(w)
	for _, note := range r.notes() {
		if _, err := fmt.Fprintln(w, "- "+note); err != nil {
			return err
		}
	}
	return nil
}

func (r *Result) title() string {
	line := "network unknown"
	if n := r.Network; n.Name != "" {
		line = fmt.Sprintf("network %s: %.0f ms to the first byte, %s", n.Name, n.LatencyMs, rateText(n.Bandwidth))
	}
	return fmt.Sprintf("%s: %s of layers; %d interleaved runs; %s; %d CPUs, Linux %s",
		r.Image, units.HumanSize(float64(r.ImageBytes)), r.Runs, line, r.Machine.CPUs, r.Machine.Kernel)
}

func rateText(bandwidth int64) string {
	if bandwidth == 0 {
		return "no limit of bandwidth"
	}
	return units.HumanSize(float64(bandwidth)) + "/s"
}

func (r *Result) tables() [][]row {
	tables := [][]row{r.readyTable()}
	if r.Read != "" {
		tables = append(tables, r.pairTable("read of "+r.Read+" ms", func(m *ModeResult) (first, second *Summary) { return m.FirstReadMs, m.SecondReadMs }))
	}
	for i := range r.Modes[r.Order[0]].Pages {
		tables = append(tables, r.pairTable("page "+r.Modes[r.Order[0]].Pages[i].URL+" ms", func(m *ModeResult) (first, second *Summary) {
			return m.Pages[i].FirstMs, m.Pages[i].SecondMs
		}))
	}
	return tables
}

func (r *Result) readyTable() []row {
	table := []row{{"ready ms", "min", "avg", "max", "median", "spread", "floor", "ratio", "fetched", "requests"}}
	for _, name := range r.Order {
		m := r.Modes[name]
		line := row{name, ms(m.MinMs), ms(m.AvgMs), ms(m.MaxMs), ms(m.MedianMs), fmt.Sprintf("%.0f %%", 100*m.Spread), "-", "-", "-", "-"}
		if m.FloorMs != nil {
			line[6], line[7] = ms(*m.FloorMs), fmt.Sprintf("%.2f", *m.FloorRatio)
		}
		if m.BytesUntilReady != nil {
			line[8], line[9] = units.HumanSize(float64(*m.BytesUntilReady)), fmt.Sprint(*m.RequestsUntilReady)
		}
		table = append(table, line)
	}
	return table
}

// pairTable is of what was done twice.
func (r *Result) pairTable(what string, of func(*ModeResult) (first, second *Summary)) []row {
	table := []row{{what, "first: min", "avg", "max", "median", "second: min", "avg", "max", "median"}}
	for _, name := range r.Order {
		line := row{name}
		first, second := of(r.Modes[name])
		for _, s := range []*Summary{first, second} {
			if s == nil {
				s = &Summary{}
			}
			line = append(line, ms(s.Min), ms(s.Avg), ms(s.Max), ms(s.Median))
		}
		table = append(table, line)
	}
	return table
}

// ms shows what is short with its fraction.
func ms(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// notes are what is to be known of the figures.
func (r *Result) notes() []string {
	var notes []string
	for _, name := range r.Order {
		if f := r.Modes[name].Floor; f != nil {
			notes = append(notes, fmt.Sprintf("floor of %s: %s", name, f))
		}
	}
	notes = append(notes, r.coldNote())
	switch r.Noise.Verdict {
	case Noisy:
		notes = append(notes, fmt.Sprintf("too noisy to say: the middle half of the runs of %s lies further apart than %.0f %% of the median",
			strings.Join(r.Noise.Modes, ", "), 100*r.Noise.Limit))
	case TooFew:
		notes = append(notes, fmt.Sprintf("noise was not judged: that takes %d runs", judgedRuns))
	}
	return notes
}

func (r *Result) coldNote() string {
	var worst Residue
	runs := 0
	for _, m := range r.Modes {
		if !m.Cold {
			continue
		}
		for _, left := range m.Residue {
			worst = Residue{max(worst.Files, left.Files), max(worst.StoredBytes, left.StoredBytes), max(worst.CachedBytes, left.CachedBytes)}
			runs++
		}
	}
	return fmt.Sprintf("cold: before each of %d cold starts the image was removed and the page cache dropped; then its stores had at most %s on disk and %s in the page cache (cachestat)",
		runs, units.HumanSize(float64(worst.StoredBytes)), units.HumanSize(float64(worst.CachedBytes)))
}
