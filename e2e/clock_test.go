package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clockEnv sets the clock of a server that was built with otherClock, in
// seconds ahead of the machine's.
const clockEnv = "E2E_CLOCK_AHEAD"

// A clock is how far a server's clock is ahead of the machine's, to the second.
type clock time.Duration

func (c clock) environment() []string {
	return append(os.Environ(), fmt.Sprintf("%s=%d", clockEnv, time.Duration(c)/time.Second))
}

// What otherClock edits of Go's own time.Now, and how. Timers are not touched:
// they go by the monotonic clock.
const (
	nowBefore = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	nowAfter  = nowBefore + "\tsec += clockAhead\n"
	nowAhead  = `
var clockAhead = func() (ahead int64) {
	text, _ := syscall.Getenv("` + clockEnv + `")
	digits, behind := text, false
	if text != "" && text[0] == '-' {
		digits, behind = text[1:], true
	}
	for _, c := range digits {
		ahead = ahead*10 + int64(c-'0')
	}
	if behind {
		return -ahead
	}
	return ahead
}()
`
)

// clockKey is a part of the key of what is built with otherClock.
func clockKey() string {
	sum := sha256.Sum256([]byte(nowAfter + nowAhead))
	return "-" + hex.EncodeToString(sum[:3])
}

// otherClock gives what makes the go command build a server whose clock can be
// set by its environment: nobody but the machine's owner can set the machine's,
// and that would be the broker's too. It is a copy of Go's package time, with
// one line more in Now.
func otherClock(t *testing.T) (flag string) {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("finding Go's own packages: %v", err)
	}
	source := filepath.Join(strings.TrimSpace(string(out)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(text, []byte(nowBefore)) != 1 {
		t.Fatalf("the line to edit is not in %s", source)
	}
	text = bytes.Replace(text, []byte(nowBefore), []byte(nowAfter), 1)
	text = append(bytes.Replace(text, []byte("import (\n"), []byte("import (\n\t\"syscall\"\n"), 1), nowAhead...)
	dir := t.TempDir()
	edited, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{source: edited}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{edited: text, overlay: list} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return "-overlay=" + overlay
}
