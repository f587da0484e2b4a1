package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"accessbroker.internal/agent/pipeline"
	"accessbroker.internal/api"
)

func bearerOf(token string) *api.Credential {
	return &api.Credential{Type: "bearer", Secret: map[string]string{"token": token}}
}

// A renewed credential is masked from its renewal on, and the earlier one still is, also
// where a write ends within it.
func TestMaskedOutput(t *testing.T) {
	secrets := []string{"first-secret-0123456789", "second-secret-0123456789", "third-secret-0123456789"}
	var out bytes.Buffer
	m := newMasked(&out)
	want := ""
	for i, secret := range secrets {
		m.hide(bearerOf(secret))
		for _, known := range secrets[:i+1] {
			for cut := range len(known) {
				line := fmt.Sprintf("%d: %s;\n", cut, known)
				at := strings.Index(line, known) + cut
				for _, part := range []string{line[:at], line[at:]} {
					if n, err := m.Write([]byte(part)); err != nil || n != len(part) {
						t.Fatal(n, err)
					}
				}
				want += strings.ReplaceAll(line, known, strings.Repeat("*", len(known)))
			}
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// The reader of a log may be slow. A renewal does not wait for it.
func TestMaskedOutputOfSlowReader(t *testing.T) {
	source, out := io.Pipe()
	m := newMasked(out)
	m.hide(bearerOf("first-secret-0123456789"))
	text := "a line without a secret\n"
	go func() { _, _ = m.Write([]byte(text)) }()
	m.hide(bearerOf("second-secret-0123456789"))
	got := make([]byte, len(text))
	if _, err := io.ReadFull(source, got); err != nil || string(got) != text {
		t.Errorf("got %q, %v", got, err)
	}
}

// If the reader of the output has gone, the command learns it.
func TestMaskedOutputOfGoneReader(t *testing.T) {
	source, out := io.Pipe()
	_ = source.CloseWithError(io.ErrClosedPipe)
	m := newMasked(out)
	m.hide(bearerOf("first-secret-0123456789"))
	var err error
	for range 1000 {
		if _, err = m.Write([]byte("a line\n")); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("a write to a closed output succeeds")
	}
}

// A command that prints text of strangers stops workflow commands first. From then on, the
// runner would print the masks of a renewed credential.
func TestNoMasksWhileCommandsAreStopped(t *testing.T) {
	const before = "a line\nstop the commands\n"
	for _, stop := range []string{"::stop-commands::once", "  ::Stop-Commands::once", "a line ##[stop-commands]once"} {
		for cut := range stop {
			var out, errs bytes.Buffer
			j := &ciJob{app: &app{terminal: terminal{out: &out, err: &errs}}, platform: pipeline.Platform{Masks: true}}
			output := j.output(j.out)
			write := func(text string) {
				if _, err := output.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			write(before)
			if err := j.mask(bearerOf("first-secret-0123456789")); err != nil || !strings.Contains(errs.String(), "\n::add-mask::first-secret-0123456789\n") {
				t.Fatalf("got %q, %v before the commands are stopped", errs.String(), err)
			}
			write(stop[:cut])
			write(stop[cut:] + "\nsecond-secret-0123456789\n")
			errs.Reset()
			if err := j.mask(bearerOf("second-secret-0123456789")); err != nil || strings.Contains(errs.String(), "second-secret") || !strings.Contains(errs.String(), "no masks") {
				t.Errorf("%s in two writes at %d: got %q, %v", stop, cut, errs.String(), err)
			}
			write("second-secret-0123456789\n")
			for _, o := range j.outputs {
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if got := out.String(); !strings.HasSuffix(got, "\n"+strings.Repeat("*", 24)+"\n") {
				t.Errorf("got %q", got)
			}
		}
	}
}
