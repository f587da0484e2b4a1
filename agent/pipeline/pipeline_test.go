package pipeline_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"unicode/utf8"

	"accessbroker.internal/agent/pipeline"
)

func TestDetect(t *testing.T) {
	for want, env := range map[string]map[string]string{
		"GitHub Actions":      {"GITHUB_ACTIONS": "true", "CI": "true"},
		"GitLab":              {"GITLAB_CI": "true", "CI": "true"},
		"CircleCI":            {"CIRCLECI": "true"},
		"Bitbucket Pipelines": {"BITBUCKET_PIPELINE_UUID": "{1}"},
		"Buildkite":           {"BUILDKITE": "true"},
		"Jenkins":             {"JENKINS_URL": "https://ci.acme.test/"},
		"a pipeline":          {"CI": "true", "GITHUB_ACTIONS": "false"},
	} {
		if got := pipeline.Detect(func(name string) string { return env[name] }).Name; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

var gitHub = map[string]string{
	"GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": "acme/shop", "GITHUB_WORKFLOW": "deploy", "GITHUB_RUN_ID": "17", "GITHUB_RUN_ATTEMPT": "1",
	"GITHUB_REF": "refs/heads/main", "GITHUB_SHA": "0123abcd", "GITHUB_ACTOR": "octocat", "GITHUB_SERVER_URL": "https://github.com",
}

func describe(env map[string]string) string {
	getenv := func(name string) string { return env[name] }
	return pipeline.Detect(getenv).Describe(getenv)
}

func TestDescribe(t *testing.T) {
	want := "GitHub Actions: acme/shop, deploy, run 17, ref refs/heads/main, commit 0123abcd, by octocat, https://github.com/acme/shop/actions/runs/17"
	if got := describe(gitHub); got != want {
		t.Errorf("got %q", got)
	}
	got := describe(map[string]string{
		"GITLAB_CI": "true", "CI_PROJECT_PATH": "acme/shop", "CI_JOB_NAME": "migrate", "CI_PIPELINE_ID": "9", "CI_COMMIT_REF_NAME": "main",
		"CI_COMMIT_SHA": "abc", "GITLAB_USER_LOGIN": "ana", "CI_PIPELINE_URL": "https://gitlab.acme.test/acme/shop/-/pipelines/9",
	})
	if want := "GitLab: acme/shop, migrate, run 9, ref main, commit abc, by ana, https://gitlab.acme.test/acme/shop/-/pipelines/9"; got != want {
		t.Errorf("got %q", got)
	}
	if got := describe(nil); got != "a pipeline" {
		t.Errorf("got %q", got)
	}
	if got := describe(map[string]string{"JENKINS_URL": "x", "BUILD_NUMBER": "4"}); got != "Jenkins: run 4" {
		t.Errorf("got %q", got)
	}
}

// A branch of a pull request is named by a stranger.
func TestDescribeTamesOutsideText(t *testing.T) {
	for name, ref := range map[string]string{
		"line": "main\napproved by: ben\r\n", "terminal": "main\x1b[2J\x1b[1;1H", "direction": "main\u202eniam", "zero width": "ma\u200bin", "separator": "a\u2028b",
		"long": strings.Repeat("é", 2000), "invalid": "a\xffb", "null": "a\x00b", "tags": "a\U000e0041",
	} {
		env := map[string]string{"GITHUB_ACTIONS": "true", "GITHUB_REF": ref, "GITHUB_REPOSITORY": "acme/shop"}
		got := describe(env)
		if len(got) > 1200 || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\r\x1b\x00\u202e\u200b\u2028\U000e0041") || !strings.HasPrefix(got, "GitHub Actions: acme/shop, ref ") {
			t.Errorf("%s: got %q", name, got)
		}
	}
	all := map[string]string{}
	for name := range gitHub {
		all[name] = strings.Repeat("x", 5000)
	}
	all["GITHUB_ACTIONS"] = "true"
	if got := describe(all); len(got) > 1200 {
		t.Errorf("got %d bytes", len(got))
	}
}

func TestMaskCommands(t *testing.T) {
	key := "-----BEGIN PRIVATE KEY-----\nMIIEvQ\r\nIBADAN\n}\n-----END PRIVATE KEY-----\n"
	password := `A1a-50%:"x/\é+`
	var out strings.Builder
	if err := pipeline.MaskCommands(&out, key, password, "abc", ""); err != nil {
		t.Fatal(err)
	}
	masked := map[string]bool{}
	for _, line := range strings.FieldsFunc(out.String(), func(r rune) bool { return r == '\n' }) {
		value, ok := strings.CutPrefix(line, "::add-mask::")
		if !ok || len(value) < 4 || masked[value] {
			t.Errorf("got the line %q", line)
		}
		masked[value] = true
	}
	for _, want := range []string{
		"MIIEvQ", "IBADAN", "-----BEGIN PRIVATE KEY-----", `A1a-50%25:"x/\é+`, // of the secrets
		base64.StdEncoding.EncodeToString([]byte(password)), base64.StdEncoding.EncodeToString([]byte(password + "\n")),
		base64.RawURLEncoding.EncodeToString([]byte(password)),
		"A1a-50%2525%253A%2522x%252F%255C%25C3%25A9%252B", `A1a-50%25:\"x/\\é+`,
	} {
		if !masked[want] {
			t.Errorf("no mask for %q in\n%s", want, out.String())
		}
	}
	if masked["}"] || masked["abc"] {
		t.Errorf("a short text is masked:\n%s", out.String())
	}
}

// A secret can't end its mask and begin another workflow command.
func TestMaskCommandsHoldOneLine(t *testing.T) {
	var out strings.Builder
	if err := pipeline.MaskCommands(&out, "secret\n::set-env name=PATH::/tmp\r::stop-commands::x"); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(strings.TrimPrefix(out.String(), "\n")) {
		if !strings.HasPrefix(line, "::add-mask::") {
			t.Errorf("got the line %q", line)
		}
	}
}

// A logWriter is a log to which another program writes a part of a line before each write.
type logWriter struct {
	strings.Builder
	longest int
}

func (l *logWriter) Write(p []byte) (int, error) {
	l.longest = max(l.longest, len(p))
	_, _ = l.WriteString("50%")
	return l.Builder.Write(p)
}

// The runner prints a command that is not at the beginning of its line.
func TestMaskCommandsBeginLines(t *testing.T) {
	var out logWriter
	secret := strings.Repeat("0123456789abcdef", 64)
	if err := pipeline.MaskCommands(&out, secret, "another secret"); err != nil {
		t.Fatal(err)
	}
	masks := 0
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "::add-mask::") {
			masks++
		} else if line != "50%\n" && line != "\n" {
			t.Errorf("the runner prints %q", line)
		}
	}
	if writes := strings.Count(out.String(), "50%"); masks < 4 || writes < 2 || out.longest > 4096 {
		t.Errorf("got %d masks in %d writes of up to %d bytes", masks, writes, out.longest)
	}
	var none logWriter
	if err := pipeline.MaskCommands(&none, "abc"); err != nil || none.Len() > 0 {
		t.Errorf("got %q, %v for a secret without a mask", none.String(), err)
	}
}
