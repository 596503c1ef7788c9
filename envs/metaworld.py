"""MetaWorld's 50 tabletop tasks (a simulated Sawyer arm) behind this package's observations.

Physics, placements, rewards, success tests and scripted experts are upstream's (metaworld >= 3.0,
Yu et al. 2019, arXiv:1910.10897). What differs here:

- A policy gets pictures, the hand's state and a sentence, never an object's or goal's position.
- `reset(seed=s)` alone fixes the placement; what ran before leaves no trace.
- An episode terminates at the first success.
- Pictures come without shadows, reflections and multisampling (about ten times faster in software
  rendering), upright, anti-aliased by rendering at twice the size and averaging.
- "corner2" stands where LeRobot's MetaWorld puts it, nearer to the table than upstream.

The control rate is upstream's 80 Hz: no action is repeated and no frame is skipped.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import difflib
import importlib
import importlib.util
import os
import string
import sys
import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

CAMERAS = {"corner2": "corner2", "gripper": "gripperPOV"}  # our name: the name in upstream's XML
CORNER2_POSITION = (0.75, 0.075, 0.7)  # m; LeRobot's, upstream's is (1.3, -0.2, 1.1)
WORKSPACE = (0.6, 0.52)  # where `zoom` aims: right and down, as fractions of the corner2 picture
RENDER_SIZE = 320  # pixels, of `render`
SUPERSAMPLE = 2  # pictures are drawn this much larger, then averaged
ARM_GROUP = 5  # MuJoCo's last geom group, unused upstream
MAX_STEPS = 500  # upstream's limit: its `step` refuses to go further
GL_KINDS = ("egl", "osmesa", "glfw", "cgl")
# Upstream's bounds of hand x, y, z (m) and gripper opening (sawyer_xyz_env.py, _HAND_SPACE).
STATE_LOW = np.array([-0.525, 0.348, -0.0525, 0.0], np.float32)
STATE_HIGH = np.array([0.525, 1.025, 0.7, 1.0], np.float32)

INSTRUCTIONS = {
    "assembly-v3": "pick up the wrench by its green handle and put its ring over the red peg",
    "basketball-v3": "pick up the orange ball and drop it into the basket",
    "bin-picking-v3": "move the green block from the red bin into the blue bin",
    "box-close-v3": "pick up the lid by its black handle and close the box with it",
    "button-press-topdown-v3": "press the red button down from above",
    "button-press-topdown-wall-v3": "press the red button behind the wall down from above",
    "button-press-v3": "push the red button on the front of the box in",
    "button-press-wall-v3": "push the red button behind the wall in",
    "coffee-button-v3": "press the button on the coffee machine",
    "coffee-pull-v3": "pull the white mug from the coffee machine to the green dot",
    "coffee-push-v3": "push the white mug under the coffee machine",
    "dial-turn-v3": "turn the black dial",
    "disassemble-v3": "lift the wrench by its green handle off the red peg",
    "door-close-v3": "push the door of the safe shut",
    "door-lock-v3": "turn the lock of the door down",
    "door-open-v3": "pull the door of the safe open by its handle",
    "door-unlock-v3": "turn the lock of the door sideways",
    "drawer-close-v3": "push the green drawer shut",
    "drawer-open-v3": "pull the green drawer open by its handle",
    "faucet-close-v3": "close the faucet by its red handle",
    "faucet-open-v3": "open the faucet by its red handle",
    "hammer-v3": "pick up the hammer and drive the nail into the wooden box",
    "hand-insert-v3": "move the gripper down into the hole",
    "handle-press-side-v3": "press the red handle on the side of the machine down",
    "handle-press-v3": "press the red handle on the front of the machine down",
    "handle-pull-side-v3": "pull the red handle on the side of the machine up",
    "handle-pull-v3": "pull the red handle on the front of the machine up",
    "lever-pull-v3": "pull the lever with the blue knob up to the red ball",
    "peg-insert-side-v3": "pick up the green peg and insert it sideways into the red hole",
    "peg-unplug-side-v3": "pull the peg out of the hole sideways",
    "pick-out-of-hole-v3": "lift the red block out of the hole and bring it to the blue ball",
    "pick-place-v3": "pick up the red block and bring it to the blue ball",
    "pick-place-wall-v3": "pick up the red block and bring it over the wall to the blue ball",
    "plate-slide-back-side-v3": "slide the black plate sideways out of the net to the red dot",
    "plate-slide-back-v3": "slide the black plate back out of the net to the red dot",
    "plate-slide-side-v3": "slide the black plate sideways into the net",
    "plate-slide-v3": "slide the black plate forward into the net",
    "push-back-v3": "push the wooden block back to the green ball",
    "push-v3": "push the red block to the green ball",
    "push-wall-v3": "push the red block around the wall to the green ball",
    "reach-v3": "move the gripper to the red ball",
    "reach-wall-v3": "move the gripper over the wall to the red ball",
    "shelf-place-v3": "pick up the blue block and put it on the shelf",
    "soccer-v3": "push the football into the goal",
    "stick-pull-v3": "grasp the blue stick and pull the bottle by its handle to the green ball",
    "stick-push-v3": "grasp the blue stick and push the bottle with it to the green ball",
    "sweep-into-v3": "sweep the wooden block into the hole",
    "sweep-v3": "sweep the wooden block off to the side of the table",
    "window-close-v3": "slide the window shut by its handle",
    "window-open-v3": "slide the window open by its handle",
}


def make(task: str, **kwargs: Any) -> MetaWorld:
    """The environment of one MetaWorld task, e.g. `make("reach-v3", image_size=128)`.

    `kwargs` are `MetaWorld`'s. Raises `ValueError` for an unknown task or a bad argument and
    `ImportError` where metaworld is not installed.
    """
    return MetaWorld(task, **kwargs)


class MetaWorld(gymnasium.Env):
    """One MetaWorld task; its placement of object and goal is drawn anew at every reset.

    Observation, a dict:
        observation.images.corner2: uint8 RGB [image_size, image_size, 3], the table from the right
            front corner, with the robot at the left; further right is further from the robot.
        observation.images.gripper: uint8 RGB [image_size, image_size, 3], down between the fingers;
            up in the picture is away from the robot.
        observation.state: float32 [4], hand x, y, z (m; y points away from the robot, z up) and
            gripper opening (0 closed, 1 open); what LeRobot's MetaWorld gives.
        task: str, the instruction.
    Action: float32 [4] in [-1, 1], clipped: a move of the hand's target along x, y, z (1 is 1 cm a
        step, 80 steps a second) and gripper effort (1 closes, -1 opens).
    Reward: upstream's shaped one, 0 to 10. `info["success"]`: bool, at every reset and step.

    Args:
        task: one of `INSTRUCTIONS`, e.g. "drawer-open-v3".
        cameras: which of `CAMERAS` to observe; `()` never touches OpenGL unless `render` is called.
        image_size: side of the pictures, pixels.
        zoom: magnifies corner2 around the workspace. 1 is LeRobot's full view; 1.6 loses sight only
            of the far goals of stick-pull and sweep; 2 crops door, window, lever and peg too.
        max_steps: steps after which an episode is truncated, at most upstream's 500.
        render_mode: "rgb_array", gymnasium's name for what `render` returns.

    Raises:
        ValueError: unknown task or camera, a size, zoom or limit out of range; in `step`, an action
            of another shape or with a value that is not finite.
        ImportError: metaworld is not installed.
        RuntimeError: no working OpenGL, when the first picture is drawn.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012

    def __init__(
        self,
        task: str,
        *,
        cameras: Sequence[str] = tuple(CAMERAS),
        image_size: int = 96,
        zoom: float = 1.0,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = "rgb_array",
    ):
        _check_name("MetaWorld task", task, INSTRUCTIONS)
        for camera in cameras:
            _check_name("camera", camera, CAMERAS)
        _check_range("image_size", image_size, 8, 1024)
        _check_range("zoom", zoom, 1, 8)
        _check_range("max_steps", max_steps, 1, MAX_STEPS)
        self.task = task
        self.instruction = INSTRUCTIONS[task]
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.max_steps = max_steps
        self.render_mode = render_mode

        envs, policies = _import_metaworld()
        self._world = envs[task]()
        self._world._partially_observable = False  # the expert is told the goal; the policy is not
        del self._world.sawyer_observation_space  # cached for a hidden goal
        self._world._set_task_called = True  # we place object and goal ourselves, in `reset`
        self._world.seeded_rand_vec = True
        self._make_expert = policies[task]
        self._expert = self._make_expert()
        self._renderer: _Renderer | None = None
        self._steps = 0
        self._full_state = np.zeros(39)  # upstream's observation, goal included
        _aim_corner2(self._world.model, zoom)

        features: dict[str, spaces.Space[Any]] = {
            f"observation.images.{camera}": spaces.Box(
                0, 255, (image_size, image_size, 3), np.uint8
            )
            for camera in self.cameras
        }
        features["observation.state"] = spaces.Box(STATE_LOW, STATE_HIGH, dtype=np.float32)
        features["task"] = spaces.Text(max_length=128, charset=string.ascii_letters + " ")
        self.observation_space = spaces.Dict(features)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draws a placement from upstream's range; equal seeds give equal ones, always.

        As upstream makes its train tasks: one reset draws the placement, then a second one, with it
        frozen, settles the hand around it.
        """
        mujoco = _mujoco()
        super().reset(seed=seed)
        world = self._world
        world.np_random = self.np_random
        mujoco.mj_resetData(world.model, world.data)
        world._freeze_rand_vec = False
        world.reset_model()
        world._freeze_rand_vec = True
        self._full_state, _ = world.reset()
        mujoco.mj_forward(world.model, world.data)  # window-close moves its window last
        self._expert = self._make_expert()
        self._steps = 0
        return self._observation(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step; terminates at the first success, truncates after `max_steps`."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(
                f"{self.task}: expected 4 finite numbers as action (dx, dy, dz, grip), got "
                f"{action.tolist()} of shape {action.shape}"
            )
        self._full_state, reward, _, _, info = self._world.step(np.clip(action, -1.0, 1.0))
        self._steps += 1
        success = bool(info["success"])
        truncated = not success and self._steps >= self.max_steps
        return self._observation(), float(reward), success, truncated, {"success": success}

    def expert_action(self) -> np.ndarray:
        """Upstream's scripted policy, which knows every position: float32 [4] in [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": it is, so we clip
            action = self._expert.get_action(self._full_state)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def render(self) -> np.ndarray:
        """The corner2 view for videos, larger: uint8 RGB [RENDER_SIZE, RENDER_SIZE, 3]."""
        return self._picture("corner2", RENDER_SIZE)

    def close(self) -> None:
        """Frees the OpenGL context; a later picture would make a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._world.close()

    def _observation(self) -> dict[str, Any]:
        observation: dict[str, Any] = {
            f"observation.images.{camera}": self._picture(camera, self.image_size)
            for camera in self.cameras
        }
        state = self._full_state[:4].astype(np.float32)
        observation["observation.state"] = np.clip(state, STATE_LOW, STATE_HIGH)
        observation["task"] = self.instruction
        return observation

    def _picture(self, camera: str, size: int) -> np.ndarray:
        if self._renderer is None:
            largest = max(self.image_size, RENDER_SIZE)
            self._renderer = _Renderer(self._world.model, largest)
        picture = self._renderer.draw(self._world.data, CAMERAS[camera], size)
        if camera == "corner2":  # mounted upside down in upstream's XML
            picture = picture[::-1, ::-1]
        return np.ascontiguousarray(picture)


class _Renderer:
    """One offscreen OpenGL context for one model, drawing pictures up to `largest` pixels wide.

    mujoco.Renderer has one size, and its OpenGL is what MUJOCO_GL said when mujoco was imported.
    """

    def __init__(self, model: Any, largest: int):
        mujoco = _mujoco()
        side = SUPERSAMPLE * largest
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        is_arm = model.body_rootid[model.geom_bodyid] == model.body("base").id
        model.geom_group[is_arm & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)] = ARM_GROUP
        self._model = model
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._gl = _gl_context(side)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._open = True
        atexit.register(_close, weakref.ref(self))  # before mujoco's own, which ends EGL

    def draw(self, data: Any, camera: str, size: int) -> np.ndarray:
        """uint8 RGB [size, size, 3] of what `camera` sees, each pixel the mean of SUPERSAMPLE²."""
        mujoco = _mujoco()
        self._gl.make_current()  # several environments of one process take turns
        self._camera.fixedcamid = self._model.camera(camera).id
        self._option.geomgroup[ARM_GROUP] = camera != "gripperPOV"  # it is behind that camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, everything, self._scene
        )
        side = SUPERSAMPLE * size
        viewport = mujoco.MjrRect(0, 0, side, side)
        fine = np.empty((side, side, 3), np.uint8)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(fine, None, viewport, self._context)
        picture = Image.fromarray(fine).reduce(SUPERSAMPLE)
        return np.asarray(picture)[::-1]  # OpenGL's first row is the lowest

    def close(self) -> None:
        if self._open:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
        self._open = False


def _close(renderer: weakref.ref[_Renderer]) -> None:
    alive = renderer()
    if alive is not None:
        alive.close()


def _aim_corner2(model: Any, zoom: float) -> None:
    """Puts corner2 at its place and shows 1/zoom of its picture, around WORKSPACE, in full size.

    MuJoCo takes an off-centre window as focal length and principal point of a sensor of size 1 × 1.
    The camera hangs upside down, so "right" and "down" of the upright picture change sign.
    """
    camera = model.camera("corner2")
    camera.pos[:] = CORNER2_POSITION
    half = 0.5 / zoom
    across, down = np.clip(WORKSPACE, half, 1 - half) - 0.5
    focal = zoom * 0.5 / np.tan(np.deg2rad(camera.fovy[0]) / 2)
    model.cam_sensorsize[camera.id] = 1.0
    model.cam_intrinsic[camera.id] = (focal, focal, -zoom * across, -zoom * down)


def _mujoco() -> Any:
    """The module; the first import also settles, in MUJOCO_GL, which OpenGL this process uses."""
    kind = os.environ.get("MUJOCO_GL") or _default_gl()
    os.environ["MUJOCO_GL"] = kind
    try:
        return importlib.import_module("mujoco")
    except AttributeError as error:  # from PyOpenGL, where the library is not installed
        raise _no_opengl(kind, error) from error


def _import_metaworld() -> tuple[dict[str, Any], dict[str, Any]]:
    """Upstream's task classes and scripted policies, by task."""
    if importlib.util.find_spec("metaworld") is None:
        raise ImportError("MetaWorld tasks need metaworld and mujoco: pip install vla[sim]")
    _mujoco()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    return dict(ALL_V3_ENVIRONMENTS), dict(ENV_POLICY_MAP)


def _gl_context(size: int) -> Any:
    """An OpenGL context of the kind that MUJOCO_GL names, with a framebuffer of size × size."""
    kind = os.environ["MUJOCO_GL"].strip().lower()
    if kind not in GL_KINDS:
        raise _no_opengl(kind, f"pictures need one of {', '.join(GL_KINDS)}")
    try:
        return importlib.import_module(f"mujoco.{kind}").GLContext(size, size)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise _no_opengl(kind, error) from error


def _no_opengl(kind: str, why: object) -> RuntimeError:
    return RuntimeError(
        f"no OpenGL with MUJOCO_GL={kind}: {why}; install libegl1 (egl) or libosmesa6 (osmesa) and "
        "unset MUJOCO_GL or name that one, or observe no cameras: cameras=() with MUJOCO_GL=disable"
    )


def _default_gl() -> str:
    if sys.platform != "linux":
        return "cgl" if sys.platform == "darwin" else "glfw"
    if _egl_has_device():
        return "egl"
    return "osmesa" if ctypes.util.find_library("OSMesa") else "disable"


def _egl_has_device() -> bool:
    """Whether libEGL finds a driver (a GPU's or Mesa's software one).

    Asked before mujoco loads an OpenGL: once one is loaded, a process cannot change to the other.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    c_int_p = ctypes.POINTER(ctypes.c_int)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, c_int_p)(address)
    count = ctypes.c_int(0)
    return bool(query(0, None, ctypes.byref(count))) and count.value > 0


def _check_name(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"unknown {what} {name!r}; {hint}")


def _check_range(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what} must be from {low} to {high}, got {value}")
