package budget

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/thaw-project/thaw/internal/profile"
)

// FileName is where rules are looked for unasked.
const FileName = ".thaw-budget.yaml"

// Config is what is judged.
type Config struct {
	Rules      []Rule
	Regression Regression
}

// Regression is how a measurement is compared with an earlier one.
type Regression struct {
	Level    string   // default fail
	Margin   float64  // share of the earlier median that it may be more; default 0.1
	Measures []string // default: the start, and the first request's penalty
}

// DefaultRegression is what there is without a file.
func DefaultRegression() Regression {
	return Regression{Level: Fail, Margin: 0.1, Measures: []string{profile.MeasureTotal, profile.PhaseFirstRequest}}
}

// file is a budget file.
type file struct {
	Version    int        `yaml:"version"`
	Budgets    []fileRule `yaml:"budgets"`
	Regression *struct {
		Level    string   `yaml:"level"`
		Margin   string   `yaml:"margin"`
		Measures []string `yaml:"measures"`
	} `yaml:"regression"`
}

// fileRule is a rule in it: a text, or a mapping.
type fileRule struct {
	Budget  string `yaml:"budget"`
	Level   string `yaml:"level"`
	Subject string `yaml:"subject"`
}

// UnmarshalYAML takes both forms.
func (r *fileRule) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		return n.Decode(&r.Budget)
	}
	for i := 0; i+1 < len(n.Content); i += 2 { // nodes know nothing of known fields
		if name := n.Content[i].Value; name != "budget" && name != "level" && name != "subject" {
			return fmt.Errorf("line %d: a budget has no %q", n.Content[i].Line, name)
		}
	}
	type plain fileRule
	return n.Decode((*plain)(r))
}

// ParseFile reads a budget file (docs/budgets.md).
func ParseFile(b []byte) (Config, error) {
	c := Config{Regression: DefaultRegression()}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	var f file
	var typed *yaml.TypeError
	if err := dec.Decode(&f); errors.As(err, &typed) { // in one line, without names of ours
		return c, errors.New(regexp.MustCompile(` (in|into) (type )?budget\.\w+`).ReplaceAllString(strings.Join(typed.Errors, "; "), ""))
	} else if err != nil && !errors.Is(err, io.EOF) {
		return c, err
	}
	if f.Version != 1 {
		return c, fmt.Errorf("version is %d: want version: 1", f.Version)
	}
	for _, one := range f.Budgets {
		r, err := ParseRule(one.Budget)
		if err != nil {
			return c, err
		}
		r.Subject = one.Subject
		if r.Level, err = parseLevel(one.Level); err != nil {
			return c, fmt.Errorf("budget %q: %w", one.Budget, err)
		}
		c.Rules = append(c.Rules, r)
	}
	g := f.Regression
	if g == nil {
		return c, nil
	}
	var err error
	if c.Regression.Level, err = parseLevel(g.Level); err != nil {
		return c, fmt.Errorf("regression: %w", err)
	}
	if g.Margin != "" {
		if c.Regression.Margin, err = ParseMargin(g.Margin); err != nil {
			return c, err
		}
	}
	if g.Measures != nil {
		c.Regression.Measures, err = parseMeasures(g.Measures)
	}
	return c, err
}

func parseLevel(s string) (string, error) {
	switch s {
	case "":
		return Fail, nil
	case Off, Warn, Fail:
		return s, nil
	}
	return "", fmt.Errorf("level %.50q: want off, warn or fail", s)
}

// ParseMargin reads a share such as "10%".
func ParseMargin(s string) (float64, error) {
	v, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(s), "%")), 64)
	if err != nil || !strings.Contains(s, "%") || !(v >= 0 && v <= 1000) || math.IsNaN(v) {
		return 0, fmt.Errorf("margin %.50q: want a percentage, such as 10%%", s)
	}
	return v / 100, nil
}

// parseMeasures reads names of measures.
func parseMeasures(list []string) ([]string, error) {
	var out []string
	for _, s := range list {
		m, err := measureNamed(strings.ReplaceAll(strings.ToLower(s), "_", "-"), false)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out, nil
}
