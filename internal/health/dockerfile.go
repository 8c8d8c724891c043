package health

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// instruction is a logical line of a Dockerfile.
type instruction struct {
	word, rest string
	line, end  int // numbers of its first line, and of the one after its last
}

var (
	directiveRegexp = pattern(`^#[ \t]*([a-zA-Z]+)[ \t]*=[ \t]*(\S+)[ \t]*$`)
	// A here-document's beginning, or what is in quotes, where there is none.
	heredocRegexp = pattern(`<<(-?)["']?([a-zA-Z_][a-zA-Z0-9_]*)["']?|"[^"]*"|'[^']*'`)
)

// pattern is compiled when it is first used: each start of the program would pay for it
// otherwise.
func pattern(s string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(s) })
}

// instructions splits a Dockerfile: comments, continued lines and the escape
// directive, and here-documents where an instruction takes them.
// https://docs.docker.com/reference/dockerfile/#format
func instructions(b []byte) []instruction {
	lines := strings.Split(strings.TrimSuffix(strings.ReplaceAll(string(b), "\r\n", "\n"), "\n"), "\n")
	escape := `\`
	for _, line := range lines { // directives come first
		m := directiveRegexp().FindStringSubmatch(line)
		if m == nil {
			break
		}
		if strings.EqualFold(m[1], "escape") && m[2] == "`" {
			escape = m[2]
		}
	}
	var out []instruction
	for i := 0; i < len(lines); {
		if s := strings.TrimSpace(lines[i]); s == "" || s[0] == '#' {
			i++
			continue
		}
		first, end, text := i, i, ""
		for ; i < len(lines); i++ {
			s := strings.TrimRight(lines[i], " \t")
			end = i + 1
			if trimmed := strings.TrimSpace(s); i > first && (trimmed == "" || trimmed[0] == '#') {
				continue // within a continued instruction
			}
			rest, more := strings.CutSuffix(s, escape)
			if strings.HasSuffix(rest, escape) { // an escaped one
				rest, more = s, false
			}
			text += rest
			if !more {
				i++
				break
			}
		}
		word, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
		if w, r, ok := strings.Cut(word, "\t"); ok {
			word, rest = w, r+" "+rest
		}
		in := instruction{strings.ToUpper(word), strings.TrimSpace(rest), first + 1, end + 1}
		if in.word == "RUN" || in.word == "COPY" || in.word == "ADD" {
			i = skipHeredocs(in.rest, lines, i)
		}
		out = append(out, in)
	}
	return out
}

// skipHeredocs returns the line after the here-documents that an instruction
// begins.
func skipHeredocs(text string, lines []string, i int) int {
	for _, m := range heredocRegexp().FindAllStringSubmatch(text, -1) {
		for ; m[2] != "" && i < len(lines); i++ {
			s := lines[i]
			if m[1] == "-" {
				s = strings.TrimLeft(s, "\t")
			}
			if s == m[2] {
				i++
				break
			}
		}
	}
	return i
}

// stage is one of a Dockerfile's.
type stage struct {
	name  string
	check *Container // nil: none
	line  int        // of the HEALTHCHECK, and the one after it; 0: the stage has none
	end   int
	last  int // line after its last instruction
}

// parseDockerfile reads the check of the last stage, which is what is built.
func parseDockerfile(b []byte) (*Check, error) {
	var stages []*stage
	for _, in := range instructions(b) {
		if in.word == "FROM" {
			stages = append(stages, newStage(in, stages))
		}
		if len(stages) == 0 {
			continue // ARG
		}
		s := stages[len(stages)-1]
		s.last = in.end
		if in.word != "HEALTHCHECK" {
			continue
		}
		c, err := parseHealthcheck(in.rest)
		if err != nil {
			return nil, fmt.Errorf("line %d: HEALTHCHECK: %w", in.line, err)
		}
		s.check, s.line, s.end = c, in.line, in.end
	}
	if len(stages) == 0 {
		return nil, errors.New("it has no FROM")
	}
	s := stages[len(stages)-1]
	check := &Check{Kind: KindDockerfile, Name: "image", Container: s.check, Line: s.line, End: s.end}
	if s.name != "" {
		check.Name = "stage " + s.name
	}
	if s.line == 0 {
		check.Line, check.End = s.last, s.last
	}
	return check, nil
}

// newStage begins a stage, with the check of the one that it is made from.
func newStage(in instruction, before []*stage) *stage {
	s := &stage{}
	words := strings.Fields(in.rest)
	for len(words) > 0 && strings.HasPrefix(words[0], "--") {
		words = words[1:]
	}
	if len(words) == 3 && strings.EqualFold(words[1], "AS") {
		s.name = strings.ToLower(words[2])
	}
	for _, b := range before {
		if len(words) > 0 && b.name != "" && strings.EqualFold(words[0], b.name) {
			s.check = b.check
		}
	}
	return s
}

// parseHealthcheck reads what follows HEALTHCHECK; nil is NONE.
// https://docs.docker.com/reference/dockerfile/#healthcheck
func parseHealthcheck(s string) (*Container, error) {
	values, names := map[string]string{}, map[string]string{"interval": "interval", "timeout": "timeout", "start-period": "start_period", "start-interval": "start_interval", "retries": "retries"}
	for strings.HasPrefix(s, "--") {
		flag, rest, _ := strings.Cut(s, " ")
		name, value, ok := strings.Cut(flag[2:], "=")
		if names[name] == "" || !ok || value == "" {
			return nil, fmt.Errorf("unknown option %.100q", flag)
		}
		values[names[name]], s = value, strings.TrimSpace(rest)
	}
	word, command, _ := strings.Cut(s, " ")
	switch strings.ToUpper(word) {
	case "NONE":
		return nil, nil
	case "CMD":
	default:
		return nil, fmt.Errorf("want CMD or NONE, not %.100q", word)
	}
	c := DockerDefaults
	if err := c.set(values); err != nil {
		return nil, err
	}
	command = strings.TrimSpace(command)
	var list []string
	if json.Unmarshal([]byte(command), &list) == nil && len(list) > 0 {
		c.Command = append([]string{"CMD"}, list...)
	} else {
		c.Command = []string{"CMD-SHELL", command}
	}
	if command == "" {
		return nil, errors.New("the command is missing")
	}
	return &c, nil
}
