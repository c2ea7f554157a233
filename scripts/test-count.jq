# The closing line of scripts/test.sh. Input: what "go test -json" printed, read
# raw, since other lines stand among the events. $kernels: results of the other
# kernels, if any. $stages: stages that failed. Subtests count as tests. A package
# that fails though no test of it did (it does not compile, say) counts as one,
# and so does a failed stage where nothing else tells of it.
[inputs | fromjson? | select(.Action | IN("pass", "fail", "skip"))] as $ended
| [$ended[] | select(.Test)] as $tests
| [$tests[] | select(.Action == "fail").Package] as $bad
| [$ended[] | select(.Test == null and .Action == "fail" and (.Package | IN($bad[]) | not))] as $packages
| def number($action; $key):
    ([$tests[] | select(.Action == $action)] | length) + ([$kernels[][]?[$key]] | add // 0);
  ([number("fail"; "failed") + ($packages | length), $stages]
    | if .[0] > 0 then .[0] else .[1] end) as $failed
| "\(number("pass"; "passed")) passed, \($failed) failed, \(number("skip"; "skipped")) skipped"
