package budget

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// words for outcomes, in tables.
var words = map[string]string{Pass: "ok", Failed: "FAIL", Inconclusive: "INCONCLUSIVE", Skipped: "off"}

// word is a result's outcome, with its level where that is not fail.
func (r *Result) word() string {
	if r.Level == Warn && r.Outcome != Pass {
		return "warning"
	}
	return words[r.Outcome]
}

func (r *Result) value() string {
	if r.Value == nil {
		return "?"
	}
	if r.Kind == KindRegression && *r.Value > 0 {
		return "+" + Amount(*r.Value, r.Unit)
	}
	return Amount(*r.Value, r.Unit)
}

func (r *Result) interval() string {
	if r.CI == nil {
		return "-"
	}
	return Amount(r.CI.Low, r.Unit) + " to " + Amount(r.CI.High, r.Unit)
}

// headline says what a report comes to.
func (r *Report) headline() string {
	n := map[string]int{}
	for i := range r.Results {
		n[r.Results[i].word()]++
	}
	s := map[string]string{Pass: "The start keeps to its budget", Failed: "The start is over its budget", Inconclusive: "The measurement does not say whether the start keeps to its budget"}[r.Outcome]
	var parts []string
	for _, w := range []string{"FAIL", "INCONCLUSIVE", "warning", "ok", "off"} {
		if n[w] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[w], strings.ToLower(w)))
		}
	}
	if len(parts) == 0 {
		return s + ": nothing was judged."
	}
	return s + ": " + strings.Join(parts, ", ") + "."
}

// Text writes the report for a terminal.
func (r *Report) Text(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := range r.Results {
		res := &r.Results[i]
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", res.word(), res.Subject, res.Rule, res.value(), res.interval(), runsText(res.N))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for i := range r.Results {
		if res := &r.Results[i]; res.Reason != "" {
			fmt.Fprintf(w, "%s: %s: %s: %s\n", res.word(), res.Subject, res.Rule, res.Reason)
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
	_, err := fmt.Fprintln(w, r.headline())
	return err
}

// Marker begins the Markdown of reports: a bot that finds a comment with it replaces
// that one.
const Marker = "<!-- thaw-budget -->"

// Markdown writes the report as a comment for a pull request.
func (r *Report) Markdown(w io.Writer) error {
	var b bytes.Buffer
	icon := map[string]string{Pass: "✅", Failed: "❌", Inconclusive: "❔", Skipped: "➖"}
	fmt.Fprintf(&b, "%s\n### %s Cold start\n\n%s\n\n", Marker, icon[r.Outcome], cell(r.headline()))
	fmt.Fprint(&b, "| | image | rule | measured | 95 % confidence | runs | |\n|---|---|---|--:|--:|--:|---|\n")
	for i := range r.Results {
		res := &r.Results[i]
		mark := icon[res.Outcome]
		if res.Level == Warn && res.Outcome != Pass {
			mark = "⚠️"
		}
		fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s | %d | %s |\n", mark, cell(res.Subject), strings.NewReplacer("`", "", "|", "\\|", "\n", " ").Replace(res.Rule), res.value(), res.interval(), res.N, cell(res.Reason))
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "\n> %s\n", cell(note))
	}
	fmt.Fprintf(&b, "\n<sub>record %s", r.Record)
	if r.Baseline != "" {
		fmt.Fprintf(&b, ", baseline %s", r.Baseline)
	}
	b.WriteString("; ❔ is no pass: the measurement does not tell.</sub>\n")
	_, err := w.Write(b.Bytes())
	return err
}

// cell is text in a table of Markdown, where it is no markup.
func cell(s string) string {
	return strings.NewReplacer("\\", "\\\\", "|", "\\|", "<", "&lt;", ">", "&gt;", "\n", " ", "\r", " ", "*", "\\*", "_", "\\_", "[", "\\[", "@", "@\u200b").Replace(s)
}

// JUnit writes the report as JUnit XML: a test for each rule; inconclusive ones are
// errors, and warnings are output of tests that pass.
func (r *Report) JUnit(w io.Writer) error {
	type message struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
	type test struct {
		Name    string    `xml:"name,attr"`
		Class   string    `xml:"classname,attr"`
		Time    string    `xml:"time,attr"`
		Failure *message  `xml:"failure"`
		Error   *message  `xml:"error"`
		Skipped *struct{} `xml:"skipped"`
		Out     string    `xml:"system-out,omitempty"`
	}
	type suite struct {
		XMLName  xml.Name `xml:"testsuite"`
		Name     string   `xml:"name,attr"`
		Tests    int      `xml:"tests,attr"`
		Failures int      `xml:"failures,attr"`
		Errors   int      `xml:"errors,attr"`
		Skipped  int      `xml:"skipped,attr"`
		Cases    []test   `xml:"testcase"`
	}
	all := suite{Name: "thaw budget", Tests: len(r.Results)}
	for i := range r.Results {
		res := &r.Results[i]
		t := test{Name: xmlText(res.Rule), Class: xmlText(res.Subject), Time: "0"}
		text := xmlText(fmt.Sprintf("measured %s (%s) in %s: %s", res.value(), res.interval(), runsText(res.N), res.Reason))
		m := &message{Message: xmlText(res.Reason), Type: res.Kind, Text: text}
		switch {
		case res.Outcome == Skipped:
			t.Skipped = &struct{}{}
			all.Skipped++
		case res.Outcome == Pass:
		case res.Level == Warn:
			t.Out = "warning: " + text
		case res.Outcome == Failed:
			t.Failure = m
			all.Failures++
		default:
			t.Error = m
			all.Errors++
		}
		all.Cases = append(all.Cases, t)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(struct {
		XMLName xml.Name `xml:"testsuites"`
		Suite   suite
	}{Suite: all}); err != nil {
		return fmt.Errorf("write JUnit: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func xmlText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0xFFFE || r == 0xFFFF {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// GitHub writes a workflow command for each rule that is no pass: GitHub shows them
// beside the change.
// https://docs.github.com/actions/reference/workflow-commands-for-github-actions
func (r *Report) GitHub(w io.Writer) error {
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	for i := range r.Results {
		res := &r.Results[i]
		if res.Outcome == Pass || res.Outcome == Skipped {
			continue
		}
		command := "error"
		if res.Level == Warn {
			command = "warning"
		}
		text := fmt.Sprintf("%s: %s: measured %s in %s: %s", res.Subject, res.Rule, res.value(), runsText(res.N), res.Reason)
		if _, err := fmt.Fprintf(w, "::%s title=%s::%s\n", command, property.Replace("Cold start: "+strings.ToLower(words[res.Outcome])), data.Replace(text)); err != nil {
			return err
		}
	}
	return nil
}

// CodeQuality writes the report as GitLab's Code Quality, with rules that are no pass as
// findings in a file of the repository, the one with the budgets.
// https://docs.gitlab.com/ci/testing/code_quality/
func (r *Report) CodeQuality(w io.Writer, path string) error {
	type lines struct {
		Begin int `json:"begin"`
	}
	type location struct {
		Path  string `json:"path"`
		Lines lines  `json:"lines"`
	}
	type finding struct {
		Description string   `json:"description"`
		CheckName   string   `json:"check_name"`
		Fingerprint string   `json:"fingerprint"`
		Severity    string   `json:"severity"`
		Location    location `json:"location"`
	}
	all := []finding{}
	for i := range r.Results {
		res := &r.Results[i]
		if res.Outcome == Pass || res.Outcome == Skipped {
			continue
		}
		severity := "major"
		if res.Level == Warn {
			severity = "minor"
		}
		sum := sha256.Sum256([]byte(res.Kind + "\x00" + res.Subject + "\x00" + res.Rule))
		all = append(all, finding{fmt.Sprintf("%s: %s: %s", res.Subject, res.Rule, res.Reason), "thaw-" + res.Kind, hex.EncodeToString(sum[:16]), severity, location{path, lines{1}}})
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(all)
}
