// Mutate measures whether tests notice mistakes. It changes the code of one
// package, one small mistake at a time, and runs the tests for each. A mistake
// that every test accepts is a survivor: either a test is missing, or the code
// is not needed, or the two versions behave the same. Read each survivor.
//
//	go run ./internal/mutate ./policy
//	go run ./internal/mutate -n 60 -seed 3 ./broker ./internal/brokertest
//	go run ./internal/mutate -files '^(lease|request)\.go$' -run 'Lease' ./broker
//	make mutate PKG=./policy N=60
//
// The first package is changed; its tests and those of the further packages
// run. The mistakes: a comparison or a logical operator is exchanged (< for <=,
// == for !=, && for ||), a boolean result is negated, the body of an if is
// removed, the return, continue or break at the end of a block is removed.
//
// The files of the package stay as they are: "go test -overlay" reads the
// changed copy from a temporary folder. Each line of the output is
//
//	survived  policy/policy.go:120  == becomes !=
//
// "not reached" instead of "survived" marks code that no test executes.
// Changes that the compiler rejects are counted and not listed. A test that
// ends by its time limit noticed the change.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/build"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"
)

type options struct {
	n     int
	seed  uint64
	files string
	run   string
	limit time.Duration // for the tests of one mutant
	total time.Duration
	args  []string
}

func main() {
	var o options
	flag.IntVar(&o.n, "n", 0, "try `count` mutants, drawn at random (0: all)")
	flag.Uint64Var(&o.seed, "seed", 1, "`seed` of the draw")
	flag.StringVar(&o.files, "files", "", "change only files whose name matches this `regexp`")
	flag.StringVar(&o.run, "run", "", "run only tests that match this `regexp`, as go test -run")
	flag.DurationVar(&o.total, "total", 30*time.Minute, "stop after this `time`")
	flag.Parse()
	o.args = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := mutate(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

// mutate tries the mutants of a package and writes the survivors. It returns an
// error if the unchanged code does not pass, or if there is nothing to change.
func mutate(ctx context.Context, o options, out io.Writer) error {
	if len(o.args) == 0 {
		return errors.New("which package? For example: mutate ./policy")
	}
	all, err := load(o.args[0], o.files)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("nothing to change in %s", o.args[0])
	}
	temp, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	ctx, cancel := context.WithTimeout(ctx, o.total)
	defer cancel()
	began := time.Now()
	reached, err := o.baseline(ctx, temp)
	if err != nil {
		return err
	}
	o.limit = 5*time.Since(began) + 10*time.Second
	fmt.Fprintf(out, "%s: %d mutants; the unchanged tests pass in %s; seed %d\n", o.args[0], len(all), time.Since(began).Round(time.Second), o.seed)
	if o.n > 0 && o.n < len(all) {
		rand.New(rand.NewPCG(o.seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:o.n]
	}
	count := map[string]int{}
	for i, m := range all {
		result := "not reached"
		if reached(filepath.Base(m.file), m.line) {
			result, err = o.try(ctx, temp, m)
			if err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			fmt.Fprintf(out, "stopped after %d of %d mutants: %v\n", i, len(all), ctx.Err())
			break
		}
		count[result]++
		if result == "survived" || result == "not reached" {
			fmt.Fprintf(out, "%-11s  %s:%d  %s\n", result, m.file, m.line, m.what)
		}
	}
	fmt.Fprintf(out, "%d killed, %d survived, %d not reached, %d did not compile\n", count["killed"], count["survived"], count["not reached"], count["did not compile"])
	return nil
}

// load returns the mutants of the package in a folder.
func load(dir, files string) ([]mutant, error) {
	pattern, err := regexp.Compile(files)
	if err != nil {
		return nil, fmt.Errorf("reading -files: %w", err)
	}
	pkg, err := build.ImportDir(dir, 0)
	if err != nil {
		return nil, fmt.Errorf("finding the package: %w", err)
	}
	var all []mutant
	for _, name := range pkg.GoFiles {
		if !pattern.MatchString(name) {
			continue
		}
		source, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		mutants, err := mutantsOf(filepath.Join(dir, name), source)
		if err != nil {
			return nil, err
		}
		all = append(all, mutants...)
	}
	return all, nil
}

// baseline runs the tests on the unchanged code. It returns a function that
// reports whether they execute a line of a file.
func (o options) baseline(ctx context.Context, temp string) (func(file string, line int) bool, error) {
	profile := filepath.Join(temp, "cover.out")
	if out, err := o.test(ctx, "-coverprofile="+profile, "-coverpkg="+o.args[0]); err != nil {
		return nil, fmt.Errorf("the unchanged code does not pass its tests: %w\n%s", err, out)
	}
	text, err := os.ReadFile(profile)
	if err != nil {
		return nil, err
	}
	executed := map[string]bool{}
	for _, m := range covered.FindAllStringSubmatch(string(text), -1) {
		from, _ := strconv.Atoi(m[2]) // digits, by the expression
		to, _ := strconv.Atoi(m[3])
		for line := from; line <= to; line++ {
			executed[fmt.Sprint(m[1], line)] = true
		}
	}
	return func(file string, line int) bool { return executed[fmt.Sprint(file, line)] }, nil
}

// covered matches a line of a coverage profile about executed code:
// path/file.go:5.10,7.2 1 4
var covered = regexp.MustCompile(`(?m)([^/:\n]+\.go):(\d+)\.\d+,(\d+)\.\d+ \d+ [1-9]\d*$`)

// try runs the tests on one mutant and returns "killed", "survived" or "did not
// compile".
func (o options) try(ctx context.Context, temp string, m mutant) (string, error) {
	source, err := os.ReadFile(m.file)
	if err != nil {
		return "", err
	}
	original, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	changed, overlay := filepath.Join(temp, "changed.go"), filepath.Join(temp, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err := errors.Join(err, os.WriteFile(changed, m.apply(source), 0o600), os.WriteFile(overlay, replace, 0o600)); err != nil {
		return "", err
	}
	out, err := o.test(ctx, "-overlay="+overlay, "-failfast", fmt.Sprintf("-timeout=%s", o.limit))
	switch {
	case err == nil:
		return "survived", nil
	case bytes.Contains(out, []byte("[build failed]")):
		return "did not compile", nil
	}
	return "killed", nil
}

// test runs go test. When the context ends, the test binary ends too.
func (o options) test(ctx context.Context, flags ...string) ([]byte, error) {
	args := slices.Concat([]string{"test", "-count=1", "-vet=off", "-run=" + o.run}, flags, o.args)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd.CombinedOutput()
}
