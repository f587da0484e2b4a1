package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/agent"
	"accessbroker.internal/agent/pipeline"
	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

const ciHelp = `ci runs a step of a pipeline with credentials. It proves the job's identity
with the token that the platform issues to the job, requests the credentials,
runs the command with them, and returns them at the end, also if the command
fails or the job is canceled. It exits with the command's exit code.

  GitHub Actions  ci requests a token for each call. The job needs
                  "permissions: id-token: write".
  GitLab          id_tokens of the job puts a token into BROKER_ID_TOKEN
  CircleCI        CIRCLE_OIDC_TOKEN_V2
  Bitbucket       BITBUCKET_STEP_OIDC_TOKEN ("oidc: true")
  elsewhere       BROKER_ID_TOKEN

--token-from, --token-file, a certificate or SPIFFE_ENDPOINT_SOCKET take the
place of that token. The audience is the broker's URL, or --token-audience.

Each argument is an entitlement, or ENTITLEMENT=SCOPE,SCOPE. The credentials
are passed as by "broker exec", whose help lists the files and variables. With
several entitlements, each file is also named by BROKER_CREDENTIAL_FILE_ and
the name of its entitlement, as in BROKER_CREDENTIAL_FILE_ORDERS_DB_RO; a
variable for which two credentials have a value is left out.

The secrets of the credentials are masked in what the command prints, also in
base64, hex, URL- and JSON-escaped form, unless it prints to a terminal or
--no-mask is set. On GitHub Actions, ci also registers them as masks for the
rest of the job: on standard error, unless that leads to a file or another
command, such as tee, and not after a command has printed "::stop-commands::":
let no line before ci do so. GitLab and others have no command for that: there,
nothing hides a secret that a later step prints.

ci writes nothing to GITHUB_ENV and GITHUB_OUTPUT. The command does not get
the variables that hold the job's identity token, unless --keep-identity is
set.

The justification is --why and a description of the job: its repository, run,
ref, commit and link. It is the same when the job runs again, so a job that
was approved too late gets its credential in the next run.

While a request waits for approval, ci prints its link and waits as long as
--wait. On SIGINT and SIGTERM, ci passes the signal on, ends the command after
--grace, and returns the credentials; a second signal cuts the time short.
GitHub allows 10 seconds between the first signal and the end. It signals only
the first process of a step: write "run: exec broker ci …".

`

// A ciFlags are the flags of "broker ci" in addition to those of a request.
type ciFlags struct {
	askFlags
	how                  handover
	noMask, keepIdentity bool
	grace                time.Duration
}

// defaultGrace leaves time to return the credentials before GitHub's second signal,
// 7.5 seconds after the first.
const defaultGrace = 5 * time.Second

func (a *app) ciCommand() *cobra.Command {
	var f ciFlags
	c := &cobra.Command{
		Use:   "ci ENTITLEMENT[=SCOPE,...] ... [flags] -- COMMAND [ARG ...]",
		Short: "Run a step of a pipeline with credentials, then return them",
		Long:  ciHelp + exitHelp,
		Example: `  broker ci orders-db-ro -- psql -h db.acme.test orders -f report.sql
  broker ci tickets-api=tickets:read,tickets:close orders-db-ro -- ./release.sh
  broker ci production --wait 20m --ticket OPS-17 -- ./deploy.sh`,
		Args: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at < 1 || at == len(args) {
				return usage("ci takes entitlements, -- and a command")
			}
			return f.how.check(c)
		},
		ValidArgsFunction: a.completeEntitlement,
		RunE: func(c *cobra.Command, args []string) error {
			at := c.ArgsLenAtDash()
			return a.ci(c.Context(), args[:at], args[at:], f)
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	f.how.add(c)
	c.Flags().BoolVar(&f.noMask, "no-mask", false, "do not mask the secrets in the log")
	c.Flags().BoolVar(&f.keepIdentity, "keep-identity", false, "leave the variables with the job's identity token to the command")
	c.Flags().DurationVar(&f.grace, "grace", defaultGrace, "how long the command may run after a signal")
	a.client.addCollecting(c)
	return c
}

// A ciJob is a run of "broker ci".
type ciJob struct {
	*app
	flags    ciFlags
	platform pipeline.Platform
	client   *api.Client
	link     string // of the pages; empty: none
	grants   []*ciGrant
	outputs  []*masked
	commands commandSwitch // of the platform
	back     sync.Once     // of giveBack
}

// A ciGrant is an entitlement of a job.
type ciGrant struct {
	ask     api.Ask
	pass    passer
	request *api.Request
	held    agent.Held // without a credential until it is collected
	due     time.Time  // of the renewal
}

// ci runs a command with credentials of several entitlements.
func (a *app) ci(ctx context.Context, entitlements, command []string, f ciFlags) (err error) {
	program, err := lookUp(command[0])
	if err != nil {
		fmt.Fprintf(a.err, "broker: %v\n", err)
		return exitError(exitCodeOfStart(err))
	}
	j := &ciJob{app: a, flags: f, platform: pipeline.Detect(a.getenv)}
	defer j.close()
	if err := j.plan(entitlements); err != nil {
		return err
	}
	cfg, err := j.identity()
	if err != nil {
		return err
	}
	// From here on, a signal ends the wait or the command, but not this process: it has
	// requests and credentials to return.
	signals := relayedSignals()
	defer signal.Stop(signals)
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	detach := context.AfterFunc(ctx, cancel)
	return a.withConfig(work, cfg, func(work context.Context, client *api.Client) error {
		j.client = client
		stdout, stderr := j.output(a.out), j.output(a.err)
		defer func() { j.giveBack(work, ctx.Err() != nil) }()
		if err := j.obtain(work); err != nil {
			return err
		}
		if !detach() {
			return errInterrupted
		}
		return j.run(work, &exec.Cmd{Path: program, Args: command, Stdin: a.in, Stdout: stdout, Stderr: stderr, WaitDelay: outputWait}, signals)
	})
}

// identity returns the configuration of the client. Without any other proof, the proof is
// the token of the platform.
func (j *ciJob) identity() (clientConfig, error) {
	proofs, err := j.tokenProofs()
	if err != nil {
		return clientConfig{}, err
	}
	cert, _ := j.setting(j.app.client.cert, "", "BROKER_CERT")
	if proofs == nil && cert == "" && j.getenv("SPIFFE_ENDPOINT_SOCKET") == "" && !j.app.client.person {
		if j.app.client.tokenFrom = fromGitHub; j.platform.Variable != "" {
			j.app.client.tokenFrom = fromVariable + j.platform.Variable
		}
		if j.platform.Variable != "" && j.getenv(j.platform.Variable) == "" {
			return clientConfig{}, usage("%s is empty, so this job of %s can't prove its identity: %s", j.platform.Variable, j.platform.Name, j.platform.Hint)
		}
	}
	return j.callerConfig()
}

// plan makes the asks.
func (j *ciJob) plan(entitlements []string) error {
	if several := len(entitlements) > 1; several {
		f := &j.flags
		if len(f.scopes)+len(f.parameters)+len(f.details) > 0 || f.extends != "" || f.how.file != "" || len(f.how.chosen) > 0 {
			return usage("--scope, --param, --detail, --extends, --file and --env-var go with one entitlement; write the scopes of several as ENTITLEMENT=SCOPE,SCOPE")
		}
	}
	if j.flags.grace < 0 {
		return usage("--grace must be a duration such as 5s")
	}
	seen := map[string]bool{}
	for _, text := range entitlements {
		name, scopes, hasScopes := strings.Cut(text, "=")
		if seen[name] || name == "" {
			return usage("%q: name each entitlement once", text)
		}
		seen[name] = true
		ask, err := j.flags.ask(name)
		if err != nil {
			return err
		}
		if hasScopes {
			if len(ask.Scopes) > 0 || scopes == "" {
				return usage("%q: name scopes either after the entitlement or with --scope", text)
			}
			ask.Scopes = strings.Split(scopes, ",")
		}
		ask.Justification = justify(ask.Justification, j.platform.Describe(j.getenv))
		pass, err := j.flags.how.passer()
		if err != nil {
			return err
		}
		j.grants = append(j.grants, &ciGrant{ask: ask, pass: pass})
	}
	return nil
}

// justify adds the description of the job to the reason of its author, if both fit.
func justify(why, job string) string {
	switch {
	case why == "":
		return job
	case len(why)+len(job)+3 > broker.MaxJustification:
		return why
	}
	return why + " (" + job + ")"
}

// close removes the files of the credentials.
func (j *ciJob) close() {
	for _, g := range j.grants {
		if g.pass == nil {
			continue
		}
		if err := g.pass.Close(); err != nil {
			fmt.Fprintf(j.err, "broker: %v\n", err)
		}
		g.pass = nil
	}
}

// obtain files all requests, so that people can decide all at once, waits for their
// approval, and collects the credentials.
func (j *ciJob) obtain(ctx context.Context) error {
	if len(j.grants) == 1 {
		g := j.grants[0]
		credential, request, err := j.client.AskAndCollect(ctx, g.ask)
		if err != nil {
			return err
		}
		if g.request = request; credential != nil {
			return j.collected(g, credential)
		}
	}
	for _, g := range j.grants {
		if g.request != nil {
			continue
		}
		request, err := j.client.Ask(ctx, g.ask)
		if err != nil {
			return ofEntitlement(g, err)
		}
		g.request = request
	}
	for _, g := range j.grants {
		if g.request.Status == api.StatusPending {
			j.announce(ctx, g)
		}
	}
	deadline := time.Now().Add(j.flags.wait)
	for _, g := range j.grants {
		credential, err := agent.Collect(ctx, j.client, g.request, agent.Wait{For: time.Until(deadline), Progress: j.decided(g)})
		if err != nil {
			return j.notCollected(g, err)
		}
		if err := j.collected(g, credential); err != nil {
			return err
		}
	}
	return nil
}

// ofEntitlement names the entitlement in an error.
func ofEntitlement(g *ciGrant, err error) error {
	var refusal *api.Error
	if errors.As(err, &refusal) {
		refusal.Detail = g.ask.Entitlement + ": " + refusal.Detail
		return err
	}
	return fmt.Errorf("%s: %w", g.ask.Entitlement, err)
}

// announce prints the request that waits, for the person who reads the log.
func (j *ciJob) announce(ctx context.Context, g *ciGrant) {
	fmt.Fprintf(j.err, "broker: %s %s\n", g.ask.Entitlement, printable(approvalsMissing(g.request)))
	if j.link == "" {
		if d, err := j.client.Discovery(ctx); err == nil { // without it, the id is enough
			j.link = d.Pages
		}
	}
	where := "request " + g.request.ID
	if j.link != "" {
		where = j.link + "requests/" + g.request.ID
	}
	fmt.Fprintf(j.err, "  %s\n", printable(where))
	if j.flags.wait > 0 {
		fmt.Fprintf(j.err, "  waiting for at most %s\n", timeLeft(j.flags.wait))
	}
}

// stayOpen leaves the requests to the next run of the job.
func (j *ciJob) stayOpen() {
	for _, g := range j.grants {
		g.request = nil
	}
	fmt.Fprintln(j.err, "broker: the request stays open: once it is approved, run the job again")
}

// decided returns the progress function that prints the decision.
func (j *ciJob) decided(g *ciGrant) func(agent.Progress) {
	return func(p agent.Progress) {
		if p.Request.Status != api.StatusPending {
			g.request = p.Request
			fmt.Fprintf(j.err, "broker: %s is %s\n", g.ask.Entitlement, decidedBy(p.Request))
		}
	}
}

// notCollected explains an error. A request that people have not decided in time stays
// open for the next run of the job.
func (j *ciJob) notCollected(g *ciGrant, err error) error {
	var pending *agent.PendingError
	if !errors.As(err, &pending) {
		g.request = nil // decided
		return ofEntitlement(g, err)
	}
	if pending.Interrupted {
		return errInterrupted // the request is withdrawn
	}
	j.stayOpen()
	detail := g.ask.Entitlement + " was not approved in time"
	if j.flags.wait == 0 {
		detail = g.ask.Entitlement + " needs approval, and --wait is not set"
	}
	return &api.Error{Code: api.Pending, Detail: detail}
}

// collected puts a credential into its files and masks it.
func (j *ciJob) collected(g *ciGrant, credential *api.Credential) error {
	g.request, g.held = nil, agent.Held{Client: j.client, Credential: credential}
	defer func() { g.due = time.Now().Add(g.held.Due()) }()
	if err := j.mask(credential); err != nil {
		return err
	}
	if g.pass.renewable() {
		pass := g.pass
		g.held.Replace = func(c *api.Credential) error { return errors.Join(j.mask(c), pass.Write(c)) }
	}
	fmt.Fprintf(j.err, "broker: %s until %s, %s\n", g.ask.Entitlement, credential.ExpiresAt.UTC().Format("15:04:05Z"), credential.Lease)
	return g.pass.Write(credential)
}
