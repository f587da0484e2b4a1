package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// prepareAudit makes records in the world of broker dev, and waits until a checkpoint
// covers the last one.
const prepareAudit = `
. "$HOME/w/env"
broker request tickets-api --scope tickets:read --why 'INC-1: a customer cannot log in' > request.txt
broker kill --holder spiffe://acme.test/agent/triage --why 'a drill' --yes > kill.txt
n=0
until broker evidence --framework owasp-nhi-2025 --admin-socket "$BROKER_ADMIN_SOCKET" | grep -q 'ended early | 1 |'; do
  n=$((n + 1))
  test $n -lt 200
  sleep .1
done
mkdir audit
cd audit
`

// An auditor follows docs/governance.md: these are its own lines.
func TestEvidenceOfGovernanceDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/governance.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n### Pull a report and check it")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```\n").FindAllStringSubmatch(section, -1)
	if len(blocks) < 5 {
		t.Fatalf("got %d blocks of commands", len(blocks))
	}
	q := newQuickstart(t)
	stop := q.startDev("bin/broker dev --dir \"$HOME/w\"")
	script := prepareAudit + "BROKER_DATABASE=$(dirname \"$BROKER_ADMIN_SOCKET\")/broker.db\n"
	for _, b := range blocks {
		script += b[1]
	}
	out, err := q.shell(t.Context(), script).CombinedOutput()
	if err != nil {
		t.Errorf("the walk-through: %v\n%s", err, out)
	}
	checked := regexp.MustCompile(`(?m)^\S+: .*: the report states (\d+), the log has (\d+)$`).FindAllStringSubmatch(string(out), -1)
	positive := 0
	for _, c := range checked {
		if c[1] != "0" {
			positive++
		}
	}
	if len(checked) != 12 || positive < 7 || !strings.Contains(string(out), "all checks passed") {
		t.Errorf("%d lines were checked, %d of them not zero:\n%s", len(checked), positive, out)
	}
	stop()
}
