package broker

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The web UI and the CLI show people what an agent writes. Such text must not hide
// other text, flood the page or control a terminal.
func TestAgentTexts(t *testing.T) {
	e := &Entitlement{Name: "e", Parameters: map[string]Parameter{
		"any":  {Pattern: regexp.MustCompile(`^(?s:.*)$`)},
		"free": {},
		"pem":  {Lines: true, MaxLength: 1000},
	}}
	fields := map[string]func(text string) error{
		"justification": func(text string) error { return (&Ask{Entitlement: "e", Justification: text}).checkForm() },
		"ticket":        func(text string) error { return (&Ask{Entitlement: "e", Ticket: text}).checkForm() },
		"comment": func(text string) error {
			_, err := (&Request{}).approval(Self(Identity{ID: "login/ben"}, time.Time{}), Vote{Approve: true, Comment: text}, nil, nil)
			return err
		},
	}
	for name := range e.Parameters {
		fields["parameter "+name] = func(text string) error { return e.checkParameters(map[string]string{name: text}) }
	}
	for field, try := range fields {
		for what, text := range map[string]string{
			"an override":                   "read\u202etxt.exe",
			"an embedding":                  "a\u202ab\u202c",
			"an isolate":                    "a\u2067b\u2069",
			"64 KiB":                        strings.Repeat("x", 64<<10),
			"64 KiB of two-byte characters": strings.Repeat("é", 32<<10),
			"an escape sequence":            "a\x1b[2Jb",
			"a zero byte":                   "a\x00b",
			"a carriage return":             "safe\rdanger",
			"a C1 control":                  "a\u009b31mb",
			"invalid UTF-8":                 "a\xffb",
		} {
			if err := try(text); !errors.Is(err, ErrInvalidRequest) && !errors.Is(err, ErrInvalidParameter) {
				t.Errorf("%s with %s: got %v, want %v or %v", field, what, err, ErrInvalidRequest, ErrInvalidParameter)
			}
		}
		if err := try("שלום, größe: 3 ≤ 4"); err != nil {
			t.Errorf("%s with plain text: got %v, want no error", field, err)
		}
	}
	for takes, e := range map[string]*Entitlement{"the parameters are: any, free, pem": e, "the parameters are: none": {Name: "none"}} {
		var r *Refusal
		if err := e.checkParameters(map[string]string{"other": "x"}); !errors.As(err, &r) || !strings.HasSuffix(r.Detail, takes) {
			t.Errorf("unknown parameter: got %v, want %q", err, takes)
		}
	}
	most := strings.Repeat("x", MaxJustification)
	if err := fields["justification"](most); err != nil {
		t.Errorf("at the maximum length: got %v, want no error", err)
	}
	if err := fields["justification"](most + "x"); !errors.Is(err, ErrInvalidRequest) {
		t.Errorf("one byte longer: got %v, want %v", err, ErrInvalidRequest)
	}
	if err := fields["parameter pem"]("a\nb"); err != nil {
		t.Errorf("line breaks in a multi-line text: got %v, want no error", err)
	}
	if err := fields["parameter free"]("a\nb"); !errors.Is(err, ErrInvalidParameter) {
		t.Errorf("line breaks in a single-line text: got %v, want %v", err, ErrInvalidParameter)
	}
}

func TestFormatDuration(t *testing.T) {
	for text, want := range map[string]string{
		"15m": "15m", "1h": "1h", "1h30m": "1h30m", "1h0m5s": "1h0m5s", "10s": "10s", "100ms": "100ms", "0s": "0s", "720h": "720h", "1m10s": "1m10s", "10h20m": "10h20m", "-1m": "-1m",
	} {
		d, err := time.ParseDuration(text)
		if got := FormatDuration(d); err != nil || got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}
