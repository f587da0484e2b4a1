//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/internal/handoff"
)

// An awsWorld is a broker that issues sessions of a fake STS, and "broker aws" in
// processes of its own.
type awsWorld struct {
	*execWorld
	run      string // XDG_RUNTIME_DIR
	stop     func() // the broker
	sessions atomic.Int64
}

func newAWSWorld(t *testing.T) *awsWorld {
	w := &awsWorld{run: t.TempDir()}
	sts := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		seconds, err := time.ParseDuration(r.PostForm.Get("DurationSeconds") + "s")
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(rw, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials><AccessKeyId>ASIA%d</AccessKeyId>
			<SecretAccessKey>secret-of-aws</SecretAccessKey><SessionToken>token-of-aws</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`,
			w.sessions.Add(1), time.Now().Add(seconds).UTC().Format(time.RFC3339))
	}))
	t.Cleanup(sts.Close)
	world := brokertest.NewWorld(t)
	files := map[string]string{
		"aws.keys":           "[default]\naws_access_key_id = AKIAOWN\naws_secret_access_key = own\n",
		"policies/aws.cedar": `@id("reports") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource in System::"reports");`,
	}
	for name, text := range files {
		if err := os.WriteFile(world.Path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	world.Edit("issuers:\n", fmt.Sprintf("issuers:\n  aws: {aws: {region: eu-west-1, endpoint: %q, auth: {assume_role: {credentials_file: aws.keys}}}}\n", sts.URL))
	world.Edit("entitlements:\n", `entitlements:
  reports: {issuer: aws, system: reports, aws: {role_arn: "arn:aws:iam::123456789012:role/reports", full_role: true}}
  brief: {issuer: aws, system: reports, default_ttl: 15m, aws: {role_arn: "arn:aws:iam::123456789012:role/reports", full_role: true}}
`)
	world.StartIdentities()
	_, w.stop = world.Start(io.Discard)
	w.execWorld = &execWorld{world, t}
	return w
}

// aws runs "broker aws" and returns the credential that it prints.
func (w *awsWorld) aws(args ...string) handoff.AWSCredential {
	w.t.Helper()
	out, errs, code := w.broker(append([]string{"aws"}, args...)...)
	var c handoff.AWSCredential
	if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 {
		w.t.Fatalf("broker aws %v: %d, %v\n%s", args, code, err, errs)
	}
	return c
}

func (w *awsWorld) broker(args ...string) (out, errs string, code int) {
	cmd := w.command(args...)
	cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+w.run)
	return output(cmd)
}

func output(cmd *exec.Cmd) (out, errs string, code int) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // the state has the exit code
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

func (w *awsWorld) files() []string {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.run, "access-broker", "credentials", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return paths
}

func (w *awsWorld) wantSessions(n int64, what string) {
	w.t.Helper()
	if got := w.sessions.Load(); got != n {
		w.t.Errorf("%s: got %d sessions, want %d", what, got, n)
	}
}

// Runs that ask for the same get the same credential, while it lasts and its lease is
// active. Between them it is in one file, which shows no secret.
func TestAWSReusesCredential(t *testing.T) {
	w := newAWSWorld(t)
	first := w.aws("reports")
	if left := time.Until(first.Expiration); left < 50*time.Minute {
		t.Errorf("by default, a session is valid for %s, want about an hour", left)
	}
	for range 3 {
		if again := w.aws("reports"); again != first {
			t.Errorf("got %+v, want %+v", again, first)
		}
	}
	w.wantSessions(1, "four runs")
	files := w.files()
	if len(files) != 1 {
		t.Fatalf("the files are %v, want one", files)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %s: %v", info.Mode(), err)
	}
	for _, secret := range []string{first.AccessKeyID, first.SecretAccessKey, first.SessionToken} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("the file contains %s", secret)
		}
	}
	// Everything that the record or the session shows is part of the key.
	for i, args := range [][]string{{"--why", "another"}, {"--ttl", "30m"}, {"--ticket", "INC-1"}, {"--duration", "2h"}} {
		if other := w.aws(append([]string{"reports"}, args...)...); other.AccessKeyID == first.AccessKeyID {
			t.Errorf("%v: got the credential of another request", args)
		}
		w.wantSessions(int64(i+2), strings.Join(args, " "))
	}
	w.aws("reports", "--no-reuse")
	w.wantSessions(6, "--no-reuse")
	w.aws("brief")
	w.aws("brief")
	w.wantSessions(7, "two runs of 15m")
}

// Processes that run at the same time get one credential.
func TestAWSRequestsOnceForParallelRuns(t *testing.T) {
	w := newAWSWorld(t)
	const n = 6
	var all sync.WaitGroup
	keys := make([]string, n)
	for i := range n {
		all.Go(func() {
			out, errs, code := w.broker("aws", "reports")
			var c handoff.AWSCredential
			if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 {
				t.Errorf("%d, %v\n%s", code, err, errs)
			}
			keys[i] = c.AccessKeyID
		})
	}
	all.Wait()
	for _, key := range keys {
		if key != keys[0] || key == "" {
			t.Errorf("the keys are %v, want one", keys)
		}
	}
	w.wantSessions(1, "parallel runs")
}

// A returned or revoked credential is not reused.
func TestAWSDoesNotReuseEndedLease(t *testing.T) {
	w := newAWSWorld(t)
	leases := func() []api.Lease {
		page, err := w.Agent().Leases(t.Context(), api.LeaseFilter{})
		if err != nil || len(page.Leases) == 0 {
			t.Fatalf("%d leases, %v", len(page.Leases), err)
		}
		return page.Leases
	}
	first := w.aws("reports")
	if _, errs, code := w.broker("return", leases()[0].ID); code != 0 {
		t.Fatal(errs)
	}
	if files := w.files(); len(files) != 0 {
		t.Errorf("after the return, there are %v", files)
	}
	second := w.aws("reports")
	if second.AccessKeyID == first.AccessKeyID {
		t.Error("a returned credential was reused")
	}
	// Revoked elsewhere: the file is still there.
	if _, err := w.Operator().Revoke(t.Context(), leases()[0].ID, "INC-1"); err != nil {
		t.Fatal(err)
	}
	third := w.aws("reports")
	if third.AccessKeyID == second.AccessKeyID {
		t.Error("a revoked credential was reused")
	}
	w.wantSessions(3, "first, after the return, after the revocation")
	// An outage of the broker takes no working credential away.
	w.stop()
	if again := w.aws("reports"); again != third {
		t.Errorf("without a broker: got %+v, want %+v", again, third)
	}
}

// A folder or file that others can use keeps nothing. The command works without it.
func TestAWSKeepsNothingInTheOpen(t *testing.T) {
	w := newAWSWorld(t)
	dir := filepath.Join(w.run, "access-broker", "credentials")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		out, errs, code := w.broker("aws", "reports")
		if code != 0 || !strings.Contains(out, "SessionToken") || !strings.Contains(errs, "the credential is not reused") {
			t.Errorf("%d %q", code, errs)
		}
	}
	w.wantSessions(2, "in an open folder")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.aws("reports")
	file := w.files()[0]
	elsewhere := filepath.Join(t.TempDir(), "file")
	for name, change := range map[string]func() error{
		"mode": func() error { return os.Chmod(file, 0o644) },
		"link": func() error {
			if err := os.Rename(file, elsewhere); err != nil {
				return err
			}
			return os.Symlink(elsewhere, file)
		},
		"folder": func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		out, errs, code := w.broker("aws", "reports")
		if code != 0 || !strings.Contains(out, "SessionToken") || !strings.Contains(errs, "the credential is not reused") {
			t.Errorf("%s: %d %q", name, code, errs)
		}
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		w.aws("reports") // a new file
	}
}

// A file opens only with its own proof, unchanged, and while enough time is left.
func TestKeptCredentialOpensOnlyForItsCaller(t *testing.T) {
	now := time.Now()
	c := &api.Credential{Lease: "lse_1", Type: "aws", Secret: api.Secret{"access_key_id": "ASIA"}, ExpiresAt: now.Add(time.Hour).UTC().Truncate(time.Second)}
	file, err := os.Create(filepath.Join(t.TempDir(), "kept"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	own := &kept{file: file, proof: []byte("a key"), id: "one"}
	if err := own.store(c, now); err != nil {
		t.Fatal(err)
	}
	if got := own.load(now); got == nil || got.Secret["access_key_id"] != "ASIA" || !got.ExpiresAt.Equal(c.ExpiresAt) {
		t.Fatalf("got %+v, want %+v", got, c)
	}
	for name, k := range map[string]*kept{
		"another proof":   {file: file, proof: []byte("another key"), id: "one"},
		"another request": {file: file, proof: []byte("a key"), id: "two"},
	} {
		if got := k.load(now); got != nil {
			t.Errorf("%s opens it", name)
		}
	}
	for _, left := range []time.Duration{refreshMargin, time.Minute, 0, -time.Minute} {
		if got := own.load(c.ExpiresAt.Add(-left)); got != nil {
			t.Errorf("it is reused with %s left", left)
		}
	}
	if got := own.load(c.ExpiresAt.Add(-refreshMargin - time.Second)); got == nil {
		t.Error("it is not reused with more than the margin left")
	}
	f, err := readKept(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*keptFile){
		"expiry": func(f *keptFile) { f.Expires = f.Expires.Add(time.Hour) },
		"issued": func(f *keptFile) { f.Issued = f.Issued.Add(time.Second) },
		"lease":  func(f *keptFile) { f.Lease = "lse_2" },
		"salt": func(f *keptFile) {
			f.Salt = bytes.Clone(f.Salt)
			f.Salt[0] ^= 1
		},
		"shorter salt": func(f *keptFile) { f.Salt = f.Salt[:31] },
		"longer salt":  func(f *keptFile) { f.Salt = append(bytes.Clone(f.Salt), 0) },
		"sealed": func(f *keptFile) {
			f.Sealed = append(bytes.Clone(f.Sealed[:len(f.Sealed)-1]), f.Sealed[len(f.Sealed)-1]^1)
		},
		"empty": func(f *keptFile) { f.Sealed = nil },
	} {
		changed := *f
		change(&changed)
		text, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file.Name(), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if own.load(now) != nil {
			t.Errorf("it opens with another %s", name)
		}
	}
}
