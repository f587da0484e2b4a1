package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
)

func (d *demo) returnLease(ctx context.Context) error {
	d.tell.Open("The agent returns its first token")
	server, done, err := d.connect(ctx, d.clientOf("tickets"))
	if err != nil {
		return err
	}
	defer done()
	introspect := func() (bool, error) {
		answer, err := server.Introspect(ctx, api.Token(d.credential.Secret["token"]))
		if err != nil {
			return false, err
		}
		return answer.Active, nil
	}
	before, err := introspect()
	if err != nil {
		return err
	}
	d.tell.Good("active", "introspection of the token by the ticket API's server")
	l, err := d.agent.Revoke(ctx, d.credential.Lease, "done")
	if err != nil {
		return err
	}
	d.tell.Good(l.Status, "the agent returns the lease %s", l.ID)
	after, err := introspect()
	if err != nil {
		return err
	}
	d.tell.Bad("inactive", "%s", revocationEffect(l, time.Now()))
	return expect(before && !after && l.Status == api.LeaseRevoked, "the lease is %s; introspection: active %t, then %t", l.Status, before, after)
}

func (d *demo) verify(ctx context.Context) error {
	d.tell.Open("An auditor verifies the log, with nothing but the database file")
	if err := d.world.Service().Publish(ctx); err != nil {
		return err
	}
	code := d.audits(ctx, d.world.Database())
	d.showReport(strings.Split(d.screen, "\n"))
	return expect(code == exitOK, "broker audit verify ended with %d", code)
}

// audits runs the command of an auditor, who knows only the log's key.
func (d *demo) audits(ctx context.Context, log string) (code int) {
	name := log[strings.LastIndexAny(log, "/")+1:]
	if strings.HasPrefix(log, "sqlite:") {
		name = "sqlite:" + name
	}
	d.tell.Types("broker audit verify " + name + " --key $LOG_KEY")
	return demoPerson{d, ""}.runs(ctx, "", "audit", "verify", log, "--key", d.world.Service().LogKey())
}

var hash = regexp.MustCompile(`\b[0-9a-f]{64}\b`)

// showReport shows rows of a report of "broker audit verify", in fewer lines: hashes are
// short, and counts of records share a row. The verdict stands at the left edge.
func (d *demo) showReport(rows []string) {
	var counts, problem []string
	for _, row := range rows {
		row = hash.ReplaceAllStringFunc(row, func(h string) string { return h[:12] + "…" })
		name, text, _ := strings.Cut(row, "  ")
		switch {
		case row == "NOT VERIFIED" || problem != nil:
			problem = append(problem, strings.TrimSpace(row))
		case count.MatchString(row):
			counts = append(counts, strings.Join(strings.Fields(row), " "))
		case name == "verified":
			d.tell.Good(name, "%s", strings.TrimSpace(text))
		case row != "":
			d.showCounts(counts)
			counts = nil
			d.tell.Shows(row)
		}
	}
	d.showCounts(counts)
	if problem != nil {
		d.tell.Bad("changed", "%s: %s", problem[0], strings.TrimSpace(strings.Join(problem[1:], " ")))
	}
}

// count is a row of how many records of a kind the log has.
var count = regexp.MustCompile(`^  [a-z_.]+ +[0-9]+$`)

func (d *demo) showCounts(counts []string) {
	if counts != nil {
		d.tell.Say("  %s", strings.Join(counts, ", "))
	}
}

func (d *demo) tamper(ctx context.Context) error {
	d.tell.Open("A changed letter in a copy of the log is found")
	verified := strings.Split(d.screen, "\n")
	copied := d.world.Path("copy.jsonl")
	index, err := d.exportChanged(ctx, copied)
	if err != nil {
		return err
	}
	code, at := d.audits(ctx, copied), fmt.Sprintf("record %d ", index)
	d.showReport(slices.DeleteFunc(strings.Split(d.screen, "\n"), func(row string) bool { return slices.Contains(verified, row) }))
	return expect(code == exitFailed && strings.Contains(d.screen, "NOT VERIFIED") && strings.Contains(d.screen, at), "broker audit verify ended with %d, or without %q", code, at)
}

// exportChanged exports the log and changes one letter of the agent's name in the record
// of the credential.
func (d *demo) exportChanged(ctx context.Context, path string) (int64, error) {
	var export bytes.Buffer
	if err := verify.Export(ctx, &export, d.world.Service().Store().Source()); err != nil {
		return 0, err
	}
	const before, after = "agent/triage", "agent/triagE"
	lines := bytes.SplitAfter(export.Bytes(), []byte("\n"))
	for i, line := range lines {
		if i == 0 || !bytes.Contains(line, []byte(audit.LeaseIssued)) {
			continue
		}
		d.tell.Say("Record %d of the copy says %q, not %q. The report now differs:", i-1, after, before)
		lines[i] = bytes.Replace(line, []byte(before), []byte(after), 1)
		return int64(i - 1), os.WriteFile(path, bytes.Join(lines, nil), 0o600)
	}
	return 0, errors.New("the log has no record of an issued lease")
}
