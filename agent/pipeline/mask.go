package pipeline

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strings"
)

// minMask is the length in bytes of the shortest text that is masked. No one can read
// a log in which each "a" is masked.
const minMask = 4

// maxWrite is the number of bytes that a pipe receives in one piece even if other processes
// write to it (PIPE_BUF on Linux).
const maxWrite = 4096

// MaskCommands writes the workflow commands by which GitHub's runner removes secrets from
// the log of the job ("Workflow commands", "Masking a value in a log"). A mask covers one
// line, so each line of a secret gets its own. Derived forms, in which programs often
// print a secret, get masks too.
//
// The runner recognizes a command only at the beginning of a line, and prints any other line.
// Programs that write to the same log leave lines unfinished, such as those of a progress
// bar, so each write begins with a line break.
func MaskCommands(w io.Writer, secrets ...string) error {
	var text []byte
	for _, form := range forms(secrets) {
		line := "::add-mask::" + escape.Replace(form) + "\n"
		if len(text) > 0 && len(text)+len(line) > maxWrite {
			if _, err := w.Write(text); err != nil {
				return err
			}
			text = nil
		}
		if len(text) == 0 {
			text = append(text, '\n')
		}
		text = append(text, line...)
	}
	if len(text) == 0 {
		return nil
	}
	_, err := w.Write(text)
	return err
}

// escape escapes the data of a workflow command.
var escape = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")

// forms returns the lines that show one of the secrets, each once.
func forms(secrets []string) (all []string) {
	add := func(text string) {
		for line := range strings.Lines(strings.ReplaceAll(text, "\r", "\n")) {
			if line = strings.TrimSpace(line); len(line) >= minMask && !slices.Contains(all, line) {
				all = append(all, line)
			}
		}
	}
	for _, s := range secrets {
		if len(s) < minMask {
			continue
		}
		add(s)
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			add(encoding.EncodeToString([]byte(s)))
			add(encoding.EncodeToString([]byte(s + "\n"))) // echo "$SECRET" | base64
		}
		add(url.QueryEscape(s))
		add(url.PathEscape(s))
		add(quoted(s))
	}
	return all
}

// quoted returns the text as it is within a JSON string.
func quoted(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		return ""
	}
	return string(text[1 : len(text)-1])
}
