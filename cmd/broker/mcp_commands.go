package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/egress/scrub"
	"accessbroker.internal/internal/handoff"
	"accessbroker.internal/mcp"
)

// commandFlags are the flags about run_command.
type commandFlags struct {
	allow []string
	env   []string
	dir   string
}

func (f *commandFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.allow, "allow-command", nil, "let the agent run this command with run_command, such as 'git fetch *'; repeatable (default: none)")
	c.Flags().StringSliceVar(&f.env, "command-env", nil, "with --allow-command: pass this variable on to commands; repeatable (default: PATH, LANG and TZ)")
	c.Flags().StringVar(&f.dir, "command-dir", "", "with --allow-command: the folder in which commands run (default: an empty one for each)")
}

// args returns the flags for a command line in another folder.
func (f *commandFlags) args() (list []string) {
	for _, rule := range f.allow {
		list = append(list, "--allow-command", rule)
	}
	for _, name := range f.env {
		list = append(list, "--command-env", name)
	}
	if f.dir != "" {
		list = append(list, "--command-dir", absolute(f.dir))
	}
	return list
}

// commands are the commands of run_command. They run without a shell, with a credential
// each, in files.
type commands struct {
	client *api.Client
	rules  []commandRule
	flags  *commandFlags
	warn   func(error)
	slots  chan struct{} // bounds the commands at a time

	mu      sync.Mutex
	running int
	secrets []string // of all credentials since no command ran: a command can read the files of another one
}

// A commandRule allows commands: a program, and the words with which its arguments begin.
type commandRule struct {
	text    string
	program string   // as the rule has it
	path    string   // absolute, found when the server started
	words   []string // arguments
	more    bool     // any further arguments
}

const (
	maxCommands  = 4
	maxOutput    = 64 << 10 // of each stream
	outputMargin = 64 << 10 // so that no secret is cut in two before it is removed
	commandDelay = 5 * time.Second
)

// newCommands returns the commands that the flags allow; nil: none.
func (f *commandFlags) newCommands(client *api.Client, warn func(error)) (*commands, error) {
	if len(f.allow) == 0 {
		if len(f.env) > 0 || f.dir != "" {
			return nil, usage("--command-env and --command-dir go with --allow-command")
		}
		return nil, nil
	}
	c := &commands{client: client, flags: f, warn: warn, slots: make(chan struct{}, maxCommands)}
	for _, text := range f.allow {
		rule, err := parseCommandRule(text)
		if err != nil {
			return nil, err
		}
		c.rules = append(c.rules, rule)
	}
	if f.dir != "" {
		if info, err := os.Stat(f.dir); err != nil || !info.IsDir() {
			return nil, usage("--command-dir: %s is not a folder", f.dir)
		}
	}
	return c, nil
}

// parseCommandRule parses a rule. A program alone allows any arguments.
func parseCommandRule(text string) (rule commandRule, err error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return rule, usage("--allow-command takes a program, such as git or 'git fetch *'")
	}
	rule = commandRule{text: strings.Join(words, " "), program: words[0], words: words[1:], more: len(words) == 1}
	if n := len(rule.words); n > 0 && rule.words[n-1] == "*" {
		rule.words, rule.more = rule.words[:n-1], true
	}
	if slices.Contains(rule.words, "*") {
		return rule, usage("--allow-command: a * stands only at the end, for any further arguments")
	}
	if rule.path, err = lookUp(rule.program); err != nil {
		return rule, usage("--allow-command: %v", err)
	}
	if rule.path, err = filepath.Abs(rule.path); err != nil {
		return rule, err
	}
	if rule.more && len(words) == 1 {
		rule.text += " *"
	}
	return rule, nil
}

func (r *commandRule) allows(argv []string) bool {
	args := argv[1:]
	return (argv[0] == r.program || argv[0] == r.path) && len(args) >= len(r.words) && slices.Equal(args[:len(r.words)], r.words) && (r.more || len(args) == len(r.words))
}

// Allowed implements mcp.Commands.
func (c *commands) Allowed() (list []string) {
	for _, r := range c.rules {
		list = append(list, r.text)
	}
	return list
}

// Run implements mcp.Commands.
func (c *commands) Run(ctx context.Context, command mcp.Command) (*mcp.Output, error) {
	i := slices.IndexFunc(c.rules, func(r commandRule) bool { return r.allows(command.Argv) })
	if i < 0 {
		return nil, mcp.ErrNotAllowed
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.count(1)
	defer c.count(-1)
	folder, err := handoff.NewFolder()
	if err != nil {
		return nil, fmt.Errorf("preparing the credential's folder: %w", err)
	}
	defer func() { c.report(folder.Close()) }()
	credential, err := c.obtain(ctx, command)
	if err != nil {
		return nil, err
	}
	c.note(credential)
	r := &commandRun{held: agent.Held{Client: c.client, Credential: credential}, folder: folder}
	r.held.Replace = func(renewed *api.Credential) error {
		c.note(renewed)
		return folder.Write(renewed)
	}
	defer func() { c.report(r.held.Return(ctx, "the command ended")) }()
	if err := folder.Write(credential); err != nil {
		return nil, err
	}
	return c.execute(ctx, r, c.rules[i].path, command)
}

func (c *commands) report(err error) {
	if err != nil {
		c.warn(err)
	}
}

// obtain obtains the credential of a command, without waiting for approval.
func (c *commands) obtain(ctx context.Context, command mcp.Command) (*api.Credential, error) {
	if command.Request != nil {
		return agent.Collect(ctx, c.client, command.Request, agent.Wait{})
	}
	return agent.Obtain(ctx, c.client, api.Ask{Entitlement: command.Entitlement, Scopes: command.Scopes, Justification: command.Reason}, agent.Wait{})
}

// count notes that a command begins or ends. The secrets are forgotten with the last one.
func (c *commands) count(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running += n; c.running == 0 {
		c.secrets = nil
	}
}

// note adds the secrets of a credential that commands can read from now on.
func (c *commands) note(credential *api.Credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secrets = append(c.secrets, scrub.Secrets(credential)...)
}

// scrubber returns a scrubber of all secrets that the output of a command can have.
func (c *commands) scrubber() *scrub.Scrubber {
	c.mu.Lock()
	defer c.mu.Unlock()
	return scrub.New(c.secrets...)
}

// A commandRun is one run of a command.
type commandRun struct {
	held   agent.Held
	folder *handoff.Folder
}

// execute runs the program. At the end, whatever it has started ends, too.
func (c *commands) execute(ctx context.Context, r *commandRun, path string, command mcp.Command) (*mcp.Output, error) {
	dir, remove, err := c.workingDir()
	if err != nil {
		return nil, err
	}
	defer remove()
	ctx, cancel := context.WithTimeout(ctx, command.Timeout)
	defer cancel()
	stdout, stderr := new(bounded), new(bounded)
	cmd := exec.CommandContext(ctx, path, command.Argv[1:]...)
	cmd.Args[0] = command.Argv[0]
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, strings.NewReader(command.Stdin), stdout, stderr
	cmd.Env = r.folder.Environment().Of(c.environment(dir))
	cmd.WaitDelay = commandDelay // if something still has the pipes
	inOwnGroup(cmd)
	err = r.while(ctx, cmd)
	out := &mcp.Output{TimedOut: ctx.Err() == context.DeadlineExceeded}
	var exit *exec.ExitError
	switch {
	case cmd.Process == nil:
		return nil, errors.Join(mcp.ErrNotStarted, err)
	case errors.As(err, &exit):
		out.ExitCode = exit.ExitCode()
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, fmt.Errorf("running the command: %w", err)
	}
	s := c.scrubber()
	for _, stream := range []struct {
		from *bounded
		to   *string
	}{{stdout, &out.Stdout}, {stderr, &out.Stderr}} {
		text, masked := stream.from.text(s)
		*stream.to, out.Scrubbed = text, out.Scrubbed || masked
		out.Truncated = out.Truncated || stream.from.total > maxOutput
	}
	return out, nil
}

// while runs the command, and renews its credential.
func (r *commandRun) while(ctx context.Context, cmd *exec.Cmd) error {
	done, err := started(cmd)
	if err != nil {
		return err
	}
	due := time.NewTimer(r.held.Due())
	defer due.Stop()
	for {
		select {
		case err := <-done:
			endGroup(cmd)
			return err
		case <-due.C:
			if usable, _ := r.held.Renew(ctx); !usable {
				endGroup(cmd) // its credential has expired
			}
			due.Reset(r.held.Due())
		}
	}
}

// environment returns the environment of commands without the credential.
func (c *commands) environment(home string) []string {
	env := []string{"HOME=" + home, "TERM=dumb"}
	for _, name := range append([]string{"PATH", "LANG", "TZ"}, c.flags.env...) {
		if value, ok := os.LookupEnv(name); ok {
			env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
			env = append(env, name+"="+value)
		}
	}
	return env
}

// workingDir returns the folder of a command, and a function that removes it.
func (c *commands) workingDir() (dir string, remove func(), err error) {
	if c.flags.dir != "" {
		dir, err = filepath.Abs(c.flags.dir)
		return dir, func() {}, err
	}
	if dir, err = os.MkdirTemp("", "broker-command-"); err != nil {
		return "", nil, fmt.Errorf("creating a folder for the command: %w", err)
	}
	return dir, func() { c.report(os.RemoveAll(dir)) }, nil
}

// bounded keeps the first part of what is written, and reads the rest, so that the writer
// goes on.
type bounded struct {
	mu    sync.Mutex
	kept  []byte
	total int64
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total += int64(len(p))
	b.kept = append(b.kept, p[:min(len(p), maxOutput+outputMargin-len(b.kept))]...)
	return len(p), nil
}

// text returns the first part without the secrets.
func (b *bounded) text(s *scrub.Scrubber) (text string, masked bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	clean := s.String(string(b.kept))
	masked = clean != string(b.kept)
	if n := maxOutput; len(clean) > n {
		for n > maxOutput-utf8.UTFMax && !utf8.RuneStart(clean[n]) {
			n--
		}
		clean = clean[:n]
	}
	return strings.ToValidUTF8(clean, "\uFFFD"), masked
}
