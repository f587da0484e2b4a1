package servers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ClockEnv is the environment variable that sets the clock of Vault and MinIO: the
// number of seconds that it is ahead of the machine's clock. It may be negative.
const ClockEnv = "E2E_CLOCK_AHEAD"

// The edit to Go's own time.Now. Timers use the monotonic clock and stay right.
const (
	nowBefore   = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	nowAfter    = nowBefore + "\tsec += clockAhead\n"
	clockSource = `
var clockAhead = func() (ahead int64) {
	text, _ := syscall.Getenv("` + ClockEnv + `")
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

// settableClock returns the flag that makes the go command build a program whose
// clock is set by ClockEnv. Only the machine's owner can set the machine's
// clock, and that would move the broker's clock too. The flag is an overlay with
// an edited copy of Go's package time, written to dir.
func settableClock(dir string) (flag string, err error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("finding Go's own packages: %w", err)
	}
	source := filepath.Join(strings.TrimSpace(string(out)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	if bytes.Count(text, []byte(nowBefore)) != 1 {
		return "", fmt.Errorf("the function to edit is not in %s: does this version of Go write time.Now in another way?", source)
	}
	text = bytes.Replace(text, []byte(nowBefore), []byte(nowAfter), 1)
	text = append(bytes.Replace(text, []byte("import (\n"), []byte("import (\n\t\"syscall\"\n"), 1), clockSource...)
	edited, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{source: edited}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(edited, text, 0o600); err != nil {
		return "", err
	}
	return "-overlay=" + overlay, os.WriteFile(overlay, list, 0o600)
}
