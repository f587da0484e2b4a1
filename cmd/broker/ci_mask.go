package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"accessbroker.internal/agent/pipeline"
	"accessbroker.internal/api"
	"accessbroker.internal/egress/scrub"
)

// mask hides the secrets of a credential before the command can print them: in its
// output, and in the rest of the job's log if the platform has a command for that.
func (j *ciJob) mask(c *api.Credential) error {
	if j.flags.noMask {
		return nil
	}
	for _, output := range j.outputs {
		output.hide(c)
	}
	if !j.platform.Masks {
		return nil
	}
	// The workflow commands have the secrets in clear, so they go only to the platform:
	// "2>log" and "2>&1 | tee log" would keep them.
	if f, isFile := j.err.(*os.File); isFile && !readByStep(f) {
		fmt.Fprintln(j.err, "broker: standard error does not lead to the runner, which gets no masks")
		return nil
	}
	sent, err := j.commands.send(func() error { return pipeline.MaskCommands(j.err, scrub.Secrets(c)...) })
	if !sent {
		fmt.Fprintln(j.err, "broker: the command has stopped workflow commands, so the runner gets no masks of a renewed credential")
	}
	return err
}

// A commandSwitch notices in the command's output that the runner obeys workflow commands no
// longer. It then prints them, secrets included, until a command that only the program knows
// ("Workflow commands", "Stopping and starting workflow commands").
type commandSwitch struct {
	mu      sync.Mutex
	stopped bool
}

// stopCommand is in the workflow command that stops the others, in any case.
const stopCommand = "stop-commands"

// send calls write unless workflow commands are stopped, and reports whether it did.
func (s *commandSwitch) send(write func() error) (sent bool, err error) {
	s.mu.Lock() // a command that stops others waits for those that are being sent
	defer s.mu.Unlock()
	if s.stopped {
		return false, nil
	}
	return true, write()
}

// watch returns a writer that looks for the command in what it passes on.
func (s *commandSwitch) watch(out io.Writer) io.Writer {
	var end []byte // of the output so far, in lower case
	return writerFunc(func(p []byte) (int, error) {
		end = append(end, bytes.ToLower(p)...)
		if bytes.Contains(end, []byte(stopCommand)) {
			s.mu.Lock()
			s.stopped = true
			s.mu.Unlock()
		}
		end = append(end[:0], end[max(0, len(end)-len(stopCommand)+1):]...)
		return out.Write(p)
	})
}

// output returns a writer for the command's output. A terminal gets it as it is: there,
// the command would notice another one, and no log keeps it.
func (j *ciJob) output(w io.Writer) io.Writer {
	if j.flags.noMask || interactive(w) {
		return w
	}
	m := newMasked(w)
	j.outputs = append(j.outputs, m)
	if j.platform.Masks {
		return j.commands.watch(m)
	}
	return m
}

// A masked removes secrets from what is written to it. Each call of hide adds a stage
// before the output. A stage passes on at once what can't be a part of a secret.
type masked struct {
	out   io.Writer
	first *stage
	last  *stage
}

// A stage passes its input on, without the secrets of one credential.
type stage struct {
	in   *io.PipeWriter // nil: the first stage, which hides nothing
	next atomic.Pointer[io.Writer]
	done chan struct{}
	then *stage
}

func newMasked(out io.Writer) *masked {
	s := new(stage)
	s.next.Store(&out)
	return &masked{out: out, first: s, last: s}
}

// write passes a part of the output on.
func (s *stage) write(p []byte) (int, error) { return (*s.next.Load()).Write(p) }

// Write masks a part of the output. It may be called while hide is.
func (m *masked) Write(p []byte) (int, error) { return m.first.write(p) }

// hide hides the secrets of a credential from now on. It never waits for a slow reader of
// the output. What a stage has in hand goes to its earlier target, ahead of the rest.
func (m *masked) hide(c *api.Credential) {
	source, in := io.Pipe()
	s := &stage{in: in, done: make(chan struct{})}
	s.next.Store(&m.out)
	go func() {
		defer close(s.done)
		_, err := io.Copy(writerFunc(s.write), scrub.Of(c).Reader(source))
		_ = source.CloseWithError(err) // stops the writer before it, which reports err
	}()
	var next io.Writer = in
	m.last.then = s
	m.last.next.Store(&next)
	m.last = s
}

// Close passes on what the stages hold back. Nothing is written after it.
func (m *masked) Close() error {
	for s := m.first.then; s != nil; s = s.then {
		if err := s.in.Close(); err != nil {
			return err
		}
		<-s.done
	}
	return nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
